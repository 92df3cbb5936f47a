import pytest

from headrace_server.training.states import JobState


@pytest.mark.parametrize("state", JobState)
def test_every_live_state_can_end_and_no_terminal_one_can_change(state: JobState) -> None:
    nexts = {other for other in JobState if state.may_become(other)}

    if state.is_terminal:
        assert nexts == set()
        assert not state.has_worker
    else:
        assert JobState.FAILED in nexts
        assert nexts & {JobState.CANCELLING, JobState.CANCELLED}
        assert state not in nexts
