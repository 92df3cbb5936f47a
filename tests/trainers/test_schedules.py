"""How the learning rate moves."""

import itertools

import pytest
from hypothesis import given, strategies as st

from headrace_server.trainers.recipe import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    Schedule,
    StepDecaySchedule,
)
from headrace_server.trainers.schedules import learning_rate

SHARES = st.floats(0, 0.99)
SCHEDULES: st.SearchStrategy[Schedule] = st.one_of(
    st.builds(ConstantSchedule, warmup_fraction=SHARES),
    st.builds(CosineSchedule, warmup_fraction=SHARES, final_fraction=SHARES),
    st.builds(LinearSchedule, warmup_fraction=SHARES, final_fraction=SHARES),
    st.builds(StepDecaySchedule, warmup_fraction=SHARES, factor=st.floats(0.01, 0.99), num_drops=st.integers(1, 9)),
)


def rates(schedule: Schedule, num_steps: int = 100) -> list[float]:
    return [learning_rate(schedule, 2.0, step, num_steps) for step in range(num_steps)]


def test_the_cosine_rises_to_the_peak_and_falls_towards_zero() -> None:
    found = rates(CosineSchedule(warmup_fraction=0.1))

    assert found[0] == pytest.approx(0.2)
    assert found[9] == found[10] == 2.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(found[10:]))
    assert 0 < found[-1] < 0.001


def test_what_falls_ends_at_its_share_of_the_peak() -> None:
    for schedule in (CosineSchedule(final_fraction=0.5), LinearSchedule(final_fraction=0.5)):
        assert rates(schedule, 10_000)[-1] == pytest.approx(1.0, rel=1e-3)


def test_the_line_is_straight() -> None:
    assert rates(LinearSchedule(warmup_fraction=0), 4) == [2.0, 1.5, 1.0, 0.5]


def test_stairs_have_equal_parts() -> None:
    found = rates(StepDecaySchedule(factor=0.1, num_drops=3), 8)

    assert found == pytest.approx([2, 2, 0.2, 0.2, 0.02, 0.02, 0.002, 0.002])


@given(schedule=SCHEDULES, num_steps=st.integers(1, 300))
def test_every_step_of_every_schedule_has_a_rate_up_to_the_peak(schedule: Schedule, num_steps: int) -> None:
    found = rates(schedule, num_steps)

    assert all(0 < rate <= 2.0 for rate in found)
    assert max(found) == 2.0
