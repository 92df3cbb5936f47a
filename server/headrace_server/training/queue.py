"""Who is next: the jobs that wait, by priority and then by age, and a limit on how many may.

Lives in memory and waits for nobody; the database knows the same jobs as QUEUED and RECOVERING, and fills the queue
again after a restart.
"""

import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from headrace_server.errors import QueueFull
from headrace_server.training.job import Job
from headrace_server.training.states import JobState


@dataclass(frozen=True, slots=True, order=True)
class _Place:
    is_new: bool
    """Jobs that have begun go before those that have not."""
    lowness: int
    created_at: datetime
    id: str
    job: Job = field(compare=False)


class JobQueue:
    """Jobs that wait for their turn."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._heap: list[_Place] = []
        self._waiting: dict[str, _Place] = {}
        self._num_reserved = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, job: str) -> bool:
        return job in self._waiting

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """Hold one place while a job is being made durable.  Raises QueueFull before anything is done."""
        num_waiting = len(self._waiting) + self._num_reserved
        if num_waiting >= self._limit:
            raise QueueFull(num_waiting, self._limit)
        self._num_reserved += 1
        try:
            yield
        finally:
            self._num_reserved -= 1

    def put(self, job: Job) -> None:
        """Let a job wait.  Jobs that were admitted before are taken even when the limit is lower by now."""
        place = _Place(job.state is JobState.QUEUED, -job.spec.priority, job.created_at, job.id, job)
        self._waiting[job.id] = place
        heapq.heappush(self._heap, place)

    def take(self) -> Job | None:
        """The job whose turn it is, as it was when it came, which then waits no longer; None when nobody waits."""
        while self._heap:
            place = heapq.heappop(self._heap)
            if self._waiting.get(place.id) is place:
                del self._waiting[place.id]
                return place.job
        return None

    def first(self, limit: int) -> list[Job]:
        """The jobs whose turns come next, at most `limit`, in order."""
        return [place.job for place in heapq.nsmallest(limit, self._waiting.values())]

    def remove(self, job: str) -> bool:
        """Forget a job that no longer waits; whether it was there."""
        if self._waiting.pop(job, None) is None:
            return False
        if len(self._heap) > 2 * len(self._waiting) + 16:  # forgotten places must not pile up
            self._heap = list(self._waiting.values())
            heapq.heapify(self._heap)
        return True
