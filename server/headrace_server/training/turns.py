"""Whose turn it is: which jobs wait, which are looked after, and who gives way to whom.

Holds a supervisor for each job that has a turn.  Decides nothing about what becomes of a job.
"""

import asyncio
from collections.abc import Iterable
from contextlib import AbstractContextManager

import structlog

from headrace_server.errors import JobNotFound
from headrace_server.training import verbs
from headrace_server.training.job import Job
from headrace_server.training.means import Means
from headrace_server.training.preemption import choose_victims
from headrace_server.training.queue import JobQueue
from headrace_server.training.states import JobState
from headrace_server.training.supervisor import Supervisor
from headrace_server.training.watch import Order

log = structlog.get_logger()


class Turns:
    """The jobs of one server that are not over, and do not rest."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._queue = JobQueue(means.settings.queue_limit)
        self._supervisors: dict[str, Supervisor] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._are_over = False

    @property
    def are_over(self) -> bool:
        """Whether no more turns are given: the server leaves."""
        return self._are_over

    @property
    def has_free_place(self) -> bool:
        """Whether a job that came now would have its turn at once."""
        return len(self._supervisors) < self._means.settings.max_running_jobs and not len(self._queue)

    def open(self, live: Iterable[Job]) -> None:
        """Go on with the jobs of an earlier process: those that had a turn have it still."""
        for job in live:
            if job.state.has_worker:
                self.give(job)
            elif job.state is not JobState.PAUSED:
                self._queue.put(job)
        self._fill()

    async def drain(self) -> None:
        """Give out no more turns, and let workers checkpoint and end, or leave them alone."""
        self._are_over = True
        settings = self._means.settings
        for supervisor in self._supervisors.values():
            supervisor.leave(suspend=settings.on_shutdown == "suspend")
        if self._running:
            seconds = settings.cancel_grace_seconds + 3 * settings.lease_seconds
            _, late = await asyncio.wait(self._running, timeout=seconds)
            if late:
                log.warning("training.drained_late", workers=len(late))

    def close(self) -> None:
        """Refuse what workers say from now on; they will say it to the next server."""
        self._are_over = True
        for supervisor in self._supervisors.values():
            supervisor.close()

    def reserve(self) -> AbstractContextManager[None]:
        """A place for a job that is about to be made.  Raises QueueFull."""
        return self._queue.reserve()

    def supervisor(self, job: str) -> Supervisor | None:
        """Who looks after a job, if it has its turn."""
        return self._supervisors.get(job)

    def queue(self, job: Job) -> None:
        """Let a job wait for its turn; one that has its turn is put back by its supervisor when that ends."""
        if not self._are_over and job.id not in self._supervisors:
            self._queue.put(job)
            self._fill()

    def forget(self, job: str) -> None:
        """Let a job wait no longer."""
        self._queue.remove(job)
        self._means.metrics.queued_jobs.set(len(self._queue))

    def give(self, job: Job) -> Supervisor:
        """Give a job its turn."""
        supervisor = Supervisor(job, self._means)
        self._supervisors[job.id] = supervisor
        turn = self._means.tasks.run(self._run(job.id, supervisor))
        self._running.add(turn)
        turn.add_done_callback(self._running.discard)
        self._means.metrics.active_jobs.set(len(self._supervisors))
        return supervisor

    async def _run(self, job: str, supervisor: Supervisor) -> None:
        structlog.contextvars.bind_contextvars(job=job)
        await supervisor.run()
        if self._are_over:
            return  # the supervisor stays, for what its worker may still say
        self._means.tasks.run(self._end(job, supervisor))

    async def _end(self, job: str, supervisor: Supervisor) -> None:
        structlog.contextvars.bind_contextvars(job=job)
        del self._supervisors[job]
        self._means.metrics.active_jobs.set(len(self._supervisors))
        self._fill()
        try:
            after = (await self._means.jobs.get(job)).job
        except JobNotFound:
            return  # it was over, and somebody has deleted it
        if after.state.is_terminal:
            await supervisor.clean_up()
        elif after.state is not JobState.PAUSED:
            self.queue(after)

    def _fill(self) -> None:
        settings = self._means.settings
        while not self._are_over and len(self._supervisors) < settings.max_running_jobs:
            if (job := self._queue.take()) is None:
                break
            self.give(job)
        self._means.metrics.queued_jobs.set(len(self._queue))
        if settings.preemption and not self._are_over:
            self._preempt()

    def _preempt(self) -> None:
        """Have running jobs give way to those of higher priority that wait, where they permit it."""
        most = self._means.settings.max_running_jobs
        waiting = [(str(job.name), job.spec.priority) for job in self._queue.first(most)]
        running = [supervisor.describe() for supervisor in self._supervisors.values()]
        for victim, by in choose_victims(waiting, running, most - len(self._supervisors)):
            supervisor = self._supervisors[victim]
            supervisor.is_giving_way = True
            self._means.metrics.preemptions.inc()
            self._means.tasks.run(self._give_way(supervisor, victim, by))

    async def _give_way(self, supervisor: Supervisor, job: str, by: str) -> None:
        async with supervisor.deciding:
            await supervisor.settle()
            after = await self._means.jobs.amend(job, lambda it: verbs.preempt(it, by, is_clear=supervisor.is_clear))
        supervisor.stop(Order.GRACEFUL if after.state is JobState.PAUSING else Order.NONE)
