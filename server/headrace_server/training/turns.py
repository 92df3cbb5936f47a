"""Whose turn it is: which jobs wait, which are looked after, and who gives way to whom.

Holds a supervisor for each job that has a turn.  The first in line waits for memory, too, and nobody overtakes it
meanwhile but by priority.  Decides nothing about what becomes of a job.
"""

import asyncio
import contextlib
from collections.abc import Iterable
from contextlib import AbstractContextManager

import structlog
from sqlalchemy.exc import SQLAlchemyError

from headrace_server.errors import DatasetNotFound, HeadraceError, JobNotFound
from headrace_server.trainers.reports import WarningRaised
from headrace_server.training import verbs
from headrace_server.training.amendment import Amendment
from headrace_server.training.job import Job
from headrace_server.training.means import Means
from headrace_server.training.memory_room import MemoryRoom
from headrace_server.training.preemption import choose_victims
from headrace_server.training.queue import JobQueue
from headrace_server.training.states import JobState
from headrace_server.training.supervisor import Supervisor
from headrace_server.training.watch import Order

LOOK_SECONDS = 1.0
"""How often the memory is looked at that a job waits for: what other processes give back rings no bell."""
_BEFORE_IT_TAKES = (JobState.QUEUED, JobState.RECOVERING, JobState.PREPARING)

log = structlog.get_logger()


class Turns:
    """The jobs of one server that are not over, and do not rest."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._queue = JobQueue(means.settings.queue_limit)
        self._supervisors: dict[str, Supervisor] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._filling: asyncio.Task[None] | None = None
        self._bell = asyncio.Event()
        self._are_over = False

    @property
    def are_over(self) -> bool:
        """Whether no more turns are given: the server leaves."""
        return self._are_over

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
        self._bell.set()
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
        self._bell.set()
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

    @property
    def _has_place(self) -> bool:
        return not self._are_over and len(self._supervisors) < self._means.settings.max_running_jobs

    def _fill(self) -> None:
        room = self._means.room
        if room is None:
            while self._has_place and (job := self._queue.take()) is not None:
                self.give(job)
        elif self._filling is None:
            self._filling = self._means.tasks.run(self._fill_as_there_is_room(room))
        self._bell.set()
        self._means.metrics.queued_jobs.set(len(self._queue))
        if self._means.settings.preemption and not self._are_over:
            self._preempt()

    async def _fill_as_there_is_room(self, room: MemoryRoom) -> None:
        """Give turns as long as there are places and jobs that wait; each when there is memory for it."""
        told: str | None = None
        try:
            while self._has_place and (first := self._first()) is not None:
                self._bell.clear()  # before looking, so that no ring is missed
                missing = await self._missing_bytes(room, first)
                if first is not self._first() or not self._has_place:
                    continue
                if missing == 0:
                    self._queue.take()
                    self.give(first)
                    self._means.metrics.queued_jobs.set(len(self._queue))
                    continue
                if missing is not None and told != first.id:
                    told = first.id
                    await self._tell(first, missing)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._bell.wait()
        finally:
            self._filling = None

    def _first(self) -> Job | None:
        return next(iter(self._queue.first(1)), None)

    async def _missing_bytes(self, room: MemoryRoom, job: Job) -> int | None:
        """What a job lacks; None when that cannot be found out now."""
        try:
            preparing = [await self._means.jobs.get(other) for other in list(self._supervisors)]
            beside = [other.job.spec for other in preparing if other.job.state in _BEFORE_IT_TAKES]
            return await room.missing_bytes(job.spec, beside)
        except DatasetNotFound:
            return 0  # its supervisor says what becomes of it
        except (HeadraceError, SQLAlchemyError, OSError) as error:  # the world's: it may pass
            log.warning("training.memory_not_seen", job=job.id, error=repr(error))
            return None

    async def _tell(self, job: Job, missing_bytes: int) -> None:
        """Say in the job's history why it waits."""
        message = f"waits for memory: {missing_bytes} bytes are missing"

        def explain(amendment: Amendment) -> None:
            if not amendment.job.state.has_worker and not amendment.job.state.is_terminal:
                amendment.explain(message)
                amendment.append(WarningRaised(code="WAITING_FOR_MEMORY", message=message))

        try:
            await self._means.jobs.change(job.id, explain)
        except (HeadraceError, SQLAlchemyError, OSError) as error:
            log.warning("training.waiting_not_told", job=job.id, error=repr(error))
        log.info("training.waits_for_memory", job=job.id, missing_bytes=missing_bytes)

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
