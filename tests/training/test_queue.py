from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, strategies as st

from headrace_server.errors import QueueFull
from headrace_server.trainers.recipe import Recipe
from headrace_server.training.job import Job
from headrace_server.training.queue import JobQueue
from headrace_server.training.spec import TrainingSpec
from headrace_server.training.states import JobState

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def a_job(number: int, priority: int = 0, state: JobState = JobState.QUEUED) -> Job:
    spec = TrainingSpec(
        dataset="datasets/d", dataset_digest="", trainer="t", parameters={}, model="models/m",
        recipe=Recipe(seed=1), priority=priority,
    )  # fmt: skip
    return Job(id=f"j{number}", spec=spec, state=state, created_at=NOON + timedelta(seconds=number))


def drained(queue: JobQueue) -> list[str]:
    taken = []
    while (job := queue.take()) is not None:
        taken.append(job.id)
    return taken


def test_higher_priorities_go_first_then_older_jobs() -> None:
    queue = JobQueue(10)
    for job in (a_job(1, 0), a_job(2, 5), a_job(3, 0), a_job(4, 5), a_job(5, -1)):
        queue.put(job)

    assert drained(queue) == ["j2", "j4", "j1", "j3", "j5"]


def test_jobs_that_have_begun_go_before_all_that_have_not() -> None:
    queue = JobQueue(10)
    queue.put(a_job(1, 100))
    queue.put(a_job(2, -100, JobState.RECOVERING))

    assert drained(queue) == ["j2", "j1"]


def test_a_full_queue_refuses_before_anything_is_done() -> None:
    queue = JobQueue(2)
    queue.put(a_job(1))
    with queue.reserve():
        with pytest.raises(QueueFull) as refusal, queue.reserve():
            pytest.fail("there was no place")
        assert refusal.value.metadata == {"waiting": "2", "limit": "2"}
    with queue.reserve():
        queue.put(a_job(2))
    with pytest.raises(QueueFull), queue.reserve():
        pytest.fail("there was no place")
    assert queue.remove("j1")
    with queue.reserve():
        pass


@given(st.lists(st.tuples(st.sampled_from(["put", "take", "remove"]), st.integers(0, 5), st.integers(-3, 3))))
def test_it_behaves_like_a_sorted_list(steps: list[tuple[str, int, int]]) -> None:
    queue, model, most = JobQueue(1000), dict[str, Job](), 0
    for number, (step, which, priority) in enumerate(steps):
        match step:
            case "put":
                job = a_job(number, priority)
                queue.put(job)
                model[job.id] = job
            case "take":
                first = min(model.values(), key=lambda job: (-job.spec.priority, job.created_at), default=None)
                assert queue.first(1) == ([first] if first else [])
                assert queue.take() == first
                if first:
                    del model[first.id]
            case "remove":
                name = sorted(model)[which] if which < len(model) else "nobody"
                assert queue.remove(name) == (model.pop(name, None) is not None)
        assert len(queue) == len(model)
        most = max(most, len(model))
        assert len(queue._heap) <= 2 * most + 16  # forgotten places do not pile up
