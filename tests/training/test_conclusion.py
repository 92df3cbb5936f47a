"""What the end of a worker means: every state with every end, and each leads somewhere legal."""

import itertools
from datetime import UTC, datetime

import pytest

from headrace_server.names import ModelName
from headrace_server.trainers.recipe import Recipe
from headrace_server.training.amendment import Amendment
from headrace_server.training.attempt import Attempt
from headrace_server.training.conclusion import Silence, conclude_end, conclude_silence, conclude_success, is_final
from headrace_server.training.events import StateChanged
from headrace_server.training.job import Job
from headrace_server.training.rows import StoredJob
from headrace_server.training.session import Outcome, TrainerEnded
from headrace_server.training.spec import TrainingSpec
from headrace_server.training.states import JobState

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
WITH_WORKER = [state for state in JobState if state.has_worker]


def an_amendment(state: JobState, restarts: int = 0, max_restarts: int = 1) -> Amendment:
    spec = TrainingSpec(
        dataset="datasets/d", dataset_digest="", trainer="t", parameters={}, model="models/m",
        recipe=Recipe(seed=1), max_restarts=max_restarts,
    )  # fmt: skip
    job = Job(id="j", spec=spec, state=state, restarts=restarts, attempt=1, created_at=NOON)
    return Amendment(StoredJob(job, Attempt(number=1, pid=5)), latest_log=0, now=NOON)


@pytest.mark.parametrize(
    ("state", "outcome", "is_leaving", "restarts"),
    list(itertools.product(WITH_WORKER, Outcome, [False, True], [0, 1])),
)
def test_every_end_in_every_state_leads_on(state: JobState, outcome: Outcome, is_leaving: bool, restarts: int) -> None:
    amendment = an_amendment(state, restarts)

    conclude_end(amendment, TrainerEnded(outcome, exit_code=1, num_killed=2), is_leaving=is_leaving)

    after = amendment.job
    if state is JobState.CANCELLING:
        assert after.state is JobState.CANCELLED
        assert after.state_message == "stopped on request; 2 processes had to be killed"
    elif outcome is Outcome.FAILED:
        assert after.state is JobState.FAILED
    elif state is JobState.PAUSING:
        assert after.state is JobState.PAUSED
        assert after.state_message.startswith("paused on request; 2 processes had to be killed")
        assert after.restarts == restarts
    elif outcome is Outcome.STOPPED or (outcome is Outcome.DIED and is_leaving):
        assert after.state is JobState.RECOVERING
        assert after.restarts == restarts
    else:
        assert after.state is (JobState.RECOVERING if restarts == 0 else JobState.FAILED)
        assert after.restarts == 1
    assert (after.failure is not None) == (after.state is JobState.FAILED)
    assert (after.ended_at is not None) == after.state.is_terminal
    assert isinstance(amendment.events[-1].happening, StateChanged)
    assert amendment.events[-1].happening.to_state is after.state


@pytest.mark.parametrize(
    ("state", "is_leaving", "counts", "restarts"),
    list(itertools.product(WITH_WORKER, [False, True], [False, True], [0, 1])),
)
def test_silence_is_final_exactly_when_nobody_continues(
    state: JobState, is_leaving: bool, counts: bool, restarts: int
) -> None:
    amendment = an_amendment(state, restarts)
    silence = Silence("the worker was silent for 4 s", counts=counts, last_lines=("boom",), num_killed=1)
    final = is_final(amendment.job, silence, is_leaving=is_leaving)

    conclude_silence(amendment, silence, is_leaving=is_leaving)

    after = amendment.job
    assert final == (after.state.is_terminal or after.state is JobState.PAUSED or is_leaving)
    if after.failure is not None:
        assert after.failure.metadata["last_lines"] == "boom"
        assert after.failure.metadata["num_killed"] == "1"
        assert after.failure.reason == "WORKER_LOST"


@pytest.mark.parametrize("state", [state for state in WITH_WORKER if state is not JobState.CANCELLING])
def test_success_passes_through_every_state_in_order(state: JobState) -> None:
    amendment = an_amendment(state)

    conclude_success(amendment, ModelName("m", 3))

    states = [e.happening.to_state for e in amendment.events if isinstance(e.happening, StateChanged)]
    order = [JobState.PREPARING, JobState.RUNNING, JobState.FINALIZING, JobState.SUCCEEDED]
    assert states == (order[2:] if state is JobState.PAUSING else order[order.index(state) + 1 :])
    assert [event.happening.kind for event in amendment.events][-2:] == ["model_registered", "state_changed"]
    assert amendment.job.model_version == "models/m/versions/3"


@pytest.mark.parametrize("silence", [None, Silence("gone", num_killed=0)])
def test_a_job_that_gave_way_waits_again(silence: Silence | None) -> None:
    amendment = an_amendment(JobState.PAUSING)
    amendment.note_worker(is_preempted=True)

    if silence is None:
        conclude_end(amendment, TrainerEnded(Outcome.STOPPED, exit_code=0), is_leaving=False)
    else:
        conclude_silence(amendment, silence, is_leaving=False)

    assert amendment.job.state is JobState.QUEUED
    assert amendment.job.state_message == (
        "gave way to a job of higher priority; no process had to be killed; "
        "another begins again, there being no checkpoint yet"
    )


def test_what_was_cancelled_is_not_a_success_any_more() -> None:
    amendment = an_amendment(JobState.CANCELLING)

    conclude_success(amendment, ModelName("m", 3))

    assert amendment.job.state is JobState.CANCELLED
    assert amendment.job.model_version == ""


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (TrainerEnded(Outcome.DIED, signal="SIGKILL", out_of_memory=True), "ended by SIGKILL because memory ran out"),
        (TrainerEnded(Outcome.DIED, exit_code=1), "exited with code 1 without a word"),
        (TrainerEnded(Outcome.DIED, last_lines=("a", "OSError: no disk")), "the worker failed: OSError: no disk"),
        (TrainerEnded(Outcome.DIED), "the worker failed: it did not say why"),
        (TrainerEnded(Outcome.FINISHED, exit_code=0), "finished without an export"),
    ],
)
def test_a_loss_is_told_in_words(ended: TrainerEnded, words: str) -> None:
    amendment = an_amendment(JobState.RUNNING)

    conclude_end(amendment, ended, is_leaving=False)

    assert words in amendment.job.state_message
    assert "another begins again" in amendment.job.state_message
    assert "restart 1 of 1" in amendment.job.state_message
