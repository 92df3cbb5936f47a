"""Looks after one job from its turn to its end: gives it a worker, hears the worker, replaces one that is lost.

The database is the truth and is asked at every turn, so that a supervisor can begin in whatever state another server
process has left the job.  What the end of a worker means is decided in `conclusion.py`.
"""

import asyncio
import hmac
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import replace

import structlog
from sqlalchemy.exc import SQLAlchemyError

from headrace_server.datasets.dataset import DatasetVersion
from headrace_server.errors import DatasetNotFound, Draining, HeadraceError, Overloaded, WorkerFenced
from headrace_server.launchers.launcher import CannotKill, CannotLaunch
from headrace_server.names import DatasetName
from headrace_server.training.amendment import Amendment
from headrace_server.training.attempt import Attempt
from headrace_server.training.conclusion import (
    Silence,
    conclude_end,
    conclude_silence,
    conclude_without_worker,
    is_final,
)
from headrace_server.training.job import Job
from headrace_server.training.means import Means
from headrace_server.training.preemption import Running
from headrace_server.training.recording import observe_lag, record
from headrace_server.training.result import Result
from headrace_server.training.session import Outcome, TrainerEnded, WorkerHello, WorkerReport, WorkerSession
from headrace_server.training.setbacks import Setbacks
from headrace_server.training.states import JobState
from headrace_server.training.watch import Order, Watch

FAREWELL_SECONDS = 1.0

log = structlog.get_logger()


class Supervisor:
    """Looks after one job; it is its sessions' ReportSink."""

    def __init__(self, job: Job, means: Means) -> None:
        self.deciding = asyncio.Lock()
        """Held while the job's end is being decided: what is cancelled is not registered, and the other way round."""
        self.is_giving_way = False
        """Whether the job is about to leave its place to another, or to rest."""
        self._as_taken = job  # as it was when it got its turn: good for what never changes
        self._job = job.id
        self._means = means
        self._watch: Watch | None = None
        self._order = Order.NONE
        self._is_leaving = False
        self._is_closed = False
        self._is_clear = False
        self._setbacks = Setbacks(means.settings.restart_backoff_seconds, means.clock)
        self._result = Result(
            job.id, means.jobs, means.publisher, self._setbacks, means.settings.store_patience_seconds
        )
        self._fault = ""
        self._bell = asyncio.Event()

    @property
    def is_clear(self) -> bool:
        """Whether it is certain that no process of any worker of this job is left."""
        return self._is_clear

    def describe(self) -> Running:
        """The job's claim on its place."""
        job, spec = self._as_taken, self._as_taken.spec
        return Running(job.id, spec.priority, spec.is_preemptible, self.is_giving_way, job.created_at)

    async def run(self) -> None:
        """Look after the job until it is over, or until the server leaves."""
        while True:
            try:
                if await self._take_turn():
                    return
            except (Overloaded, SQLAlchemyError, OSError, CannotKill) as error:  # the world's: it may pass
                self._setbacks.note()
                log.warning("training.supervision_delayed", job=self._job, error=repr(error))
                await self._pause(self._setbacks.delay_seconds(), self._bell)
            except Exception:  # our own fault: the job must not hang because of it
                self._setbacks.note()
                self._fault = uuid.uuid4().hex[:8]
                log.exception("training.supervision_failed", job=self._job, error_id=self._fault)
                await self._pause(self._setbacks.delay_seconds(), self._bell)

    async def clean_up(self) -> None:
        """Remove what is left of the job, which is over.  What cannot be removed now is removed at the next start."""
        try:
            stored = await self._means.jobs.get(self._job)
            if self._watch is not None:  # an agent that has just been told that all is well ends by itself
                await self._watch.wait_until_gone(self._means.settings.lease_seconds)
                self._watch.fence(self._watch.attempt.number + 1)
            await self._means.workers.remove(self._job, stored.attempt, self._means.settings.lease_seconds)
            await self._means.leftovers.sweep(stored.job)
            await self._means.workers.remove_job(self._job)
        except (HeadraceError, CannotKill, SQLAlchemyError, OSError) as error:
            log.warning("training.not_cleaned_up", job=self._job, error=repr(error))

    async def settle(self) -> bool:
        """End a job as SUCCEEDED whose result is registered already, which a server may not have lived to say.

        Returns whether that was so.  The caller holds `deciding`.
        """
        return await self._result.settle()

    def stop(self, order: Order) -> None:
        """Pass on that the job is to end, or to rest; with Order.NONE only look again at what it is now."""
        self._give_order(order)

    def profile(self, num_steps: int) -> bool:
        """Have the next steps recorded; whether there is a worker that could."""
        return self._watch is not None and self._watch.profile(num_steps)

    def leave(self, *, suspend: bool) -> None:
        """The server leaves: let the worker checkpoint and end, or leave it alone."""
        self._is_leaving = True
        if suspend:
            self._give_order(Order.GRACEFUL)
        elif self._watch is not None:
            self._watch.leave()
        self._ring()

    def close(self) -> None:
        """Refuse what workers say from now on; they will say it to the next server."""
        self._is_closed = True

    # The worker's side.

    async def attach(self, hello: WorkerHello) -> WorkerSession:
        """Connect the agent of the newest attempt.  Raises WorkerFenced, Draining."""
        watch = self._watch
        if self._is_closed or (self._is_leaving and self._order is Order.NONE):
            raise Draining
        if watch is None or hello.attempt != watch.attempt.number:
            raise await self._refusal(hello)
        if not hmac.compare_digest(hello.token.encode(), watch.attempt.token.encode()):
            raise WorkerFenced(hello.attempt, watch.attempt.number + 1)
        watch.renew()

        def welcome(amendment: Amendment) -> int:
            amendment.check_worker(hello.attempt)
            if (amendment.attempt.pid, amendment.attempt.host) != (hello.pid, hello.host):
                amendment.note_worker(pid=hello.pid, host=hello.host)
            return amendment.attempt.acknowledged

        acknowledged = await self._means.jobs.amend(self._job, welcome)
        if self._watch is not watch:  # it was given up in that moment
            raise WorkerFenced(hello.attempt, hello.attempt + 1)
        self._setbacks.forget()
        session = WorkerSession(self, hello.attempt, acknowledged)
        watch.welcome(session)
        log.info("training.worker_attached", job=self._job, attempt=hello.attempt, acknowledged=acknowledged)
        return session

    async def keep(self, session: WorkerSession, reports: Sequence[WorkerReport]) -> int:
        """Make reports durable.  See ReportSink."""
        if self._is_closed:
            raise Draining
        watch = self._watch_of(session)
        watch.renew()

        def take(amendment: Amendment) -> tuple[int, TrainerEnded | None]:
            return record(amendment, session.attempt, reports), amendment.attempt.ended

        acknowledged, ended = await self._means.jobs.amend(self._job, take)
        watch.renew()
        observe_lag(reports, self._means.metrics)
        if ended is not None:
            watch.note_end(ended)
        return acknowledged

    def note_life(self, session: WorkerSession, trainer_pid: int) -> None:
        """Renew the lease.  See ReportSink."""
        watch = self._watch
        if watch is None or watch.session is not session:
            return
        watch.renew()
        if trainer_pid != watch.attempt.trainer_pid:
            watch.attempt = watch.attempt.model_copy(update={"trainer_pid": trainer_pid})
            if not self._is_closed:
                self._means.tasks.run(self._keep_trainer_pid(session.attempt, trainer_pid))

    def note_gone(self, session: WorkerSession) -> None:
        """Forget a connection; the lease goes on.  See ReportSink."""
        if self._watch is not None:
            self._watch.note_gone(session)

    # The job's side.

    async def _take_turn(self) -> bool:
        """Do the next thing that the job needs, to its end; returns whether there is nothing more to do."""
        bell = self._bell  # taken before looking, so that no order is missed
        stored = await self._means.jobs.get(self._job)
        job, attempt = stored.job, stored.attempt
        if job.state.is_terminal:
            return True
        if self._fault:
            await self._fail_internally(attempt)
            return False
        if job.state.has_worker:
            return await self._look_after(job, attempt)
        if self._is_leaving:
            return True
        if not self._is_clear:
            # One that has said its last word is about to end by itself.
            patience = self._means.settings.lease_seconds if attempt.ended is not None else 0.0
            await self._means.workers.remove(self._job, attempt, patience)
            self._is_clear = True
        if job.state is JobState.PAUSED or self.is_giving_way:
            return True
        seconds = self._setbacks.delay_seconds(job.restarts)
        if job.state is JobState.RECOVERING and await self._pause(seconds, bell):
            return False  # something has changed
        await self._launch(job)
        return False

    async def _launch(self, job: Job) -> None:
        try:
            dataset = await self._means.datasets.version(DatasetName.parse(job.spec.dataset))
        except DatasetNotFound as error:
            await self._result.refuse("DATASET_NOT_FOUND", error)
            return
        token = secrets.token_urlsafe(32)

        def begin(amendment: Amendment) -> bool:
            if amendment.job.state not in (JobState.QUEUED, JobState.RECOVERING):
                return False  # it was cancelled meanwhile
            self._is_clear = False
            if amendment.attempt.number == 0:
                waited = (amendment.now - amendment.job.created_at).total_seconds()
                self._means.metrics.job_queue_seconds.observe(max(0.0, waited))
            amendment.begin_attempt(token)
            amendment.move(JobState.PREPARING, "WORKER_STARTED", f"worker {amendment.attempt.number} starts")
            return True

        if await self._means.jobs.amend(self._job, begin):
            await self._start_worker(dataset)

    async def _start_worker(self, dataset: DatasetVersion) -> None:
        stored = await self._means.jobs.get(self._job)
        watch = self._adopt(stored.attempt, is_fresh=True)
        try:
            await self._means.workers.start(stored.job, stored.attempt, dataset)
        except CannotLaunch as error:
            await self._conclude(watch, Silence(f"the worker could not be started: {error}"))
        except OSError as error:  # a full disk, for example: not the job's doing
            self._setbacks.note()
            await self._conclude(watch, Silence(f"the worker could not be started: {error}", counts=False))

    async def _look_after(self, job: Job, attempt: Attempt) -> bool:
        """Wait for the end of the worker and act on it; returns whether the server leaves the worker alone."""
        if job.state.is_ending:
            if self._is_clear:  # it was asked for between two workers
                await self._means.jobs.change(self._job, conclude_without_worker)
                return False
            self._give_order(Order.GRACEFUL)
        watch = self._watch or self._adopt(attempt, is_fresh=False)
        end = await watch.end()
        if end is None:
            return True
        await self._conclude(watch, end)
        return False

    def _adopt(self, attempt: Attempt, *, is_fresh: bool) -> Watch:
        means = self._means
        watch = Watch(
            attempt, means.settings, means.clock, lambda: means.workers.ending(self._job, attempt), is_fresh=is_fresh
        )
        if self._order is not Order.NONE:
            watch.stop(self._order)
        elif self._is_leaving:
            watch.leave()
        self._watch = watch
        return watch

    async def _conclude(self, watch: Watch, end: TrainerEnded | Silence) -> None:
        async with self.deciding:
            before = await self._means.jobs.get(self._job)
            if before.job.state.is_terminal:
                return  # it was settled meanwhile
            match end:
                case TrainerEnded(outcome=Outcome.FINISHED) if before.has_result:
                    after = await self._result.register(before)
                case TrainerEnded():
                    after = await self._means.jobs.change(
                        self._job, lambda it: conclude_end(it, end, is_leaving=self._is_leaving)
                    )
                case Silence():
                    after = await self._give_up(before.job, watch, end)
        if after.restarts > before.job.restarts:
            cause = "died" if isinstance(end, TrainerEnded) else "silent"
            self._means.metrics.worker_restarts.labels(cause).inc()
        if not after.state.is_terminal and not after.state.has_worker:
            self.is_giving_way = self.is_giving_way or after.state is not JobState.RECOVERING
            if isinstance(end, TrainerEnded):  # its agent has only to hear that all is kept, and ends by itself
                await watch.wait_until_gone(FAREWELL_SECONDS)
            watch.fence(watch.attempt.number + 1)
            self._watch = None

    async def _give_up(self, job: Job, watch: Watch, silence: Silence) -> Job:
        """Take the job from a silent worker.

        Where another is to continue, that is said first, and the old one's processes are removed before the next is
        launched; where the job is over by that, they are removed first.
        """
        silence = replace(silence, last_lines=await self._means.workers.last_lines(self._job, watch.attempt))
        if is_final(job, silence, is_leaving=self._is_leaving):
            num_killed = await self._means.workers.remove(self._job, watch.attempt)
            silence = replace(silence, num_killed=num_killed)

        def conclude(amendment: Amendment) -> tuple[Job, TrainerEnded | None]:
            if amendment.attempt.ended is None:
                conclude_silence(amendment, silence, is_leaving=self._is_leaving)
            return amendment.job, amendment.attempt.ended

        after, ended = await self._means.jobs.amend(self._job, conclude)
        if ended is not None:  # it had said how it ended, and was cut off before this process knew: that counts
            watch.note_end(ended)
        return after

    async def _fail_internally(self, attempt: Attempt) -> None:
        async with self.deciding:
            if not await self._result.settle():
                await self._means.workers.remove(self._job, attempt)
                await self._result.fail_internally(self._fault)

    async def _keep_trainer_pid(self, attempt: int, trainer_pid: int) -> None:
        def note(amendment: Amendment) -> None:
            if amendment.attempt.number == attempt and amendment.job.state.has_worker:
                amendment.note_worker(trainer_pid=trainer_pid)

        await self._means.jobs.amend(self._job, note)

    async def _refusal(self, hello: WorkerHello) -> WorkerFenced | Draining:
        """Why an agent cannot attach: it was replaced, or will be; or the job is not being watched yet."""
        stored = await self._means.jobs.get(self._job)
        if not stored.job.state.has_worker:
            return WorkerFenced(hello.attempt, stored.attempt.number + 1)
        if hello.attempt == stored.attempt.number:
            return Draining()  # this process is still taking over: come again
        return WorkerFenced(hello.attempt, stored.attempt.number)

    def _watch_of(self, session: WorkerSession) -> Watch:
        watch = self._watch
        if watch is None or watch.session is not session:
            current = session.attempt + 1 if watch is None else watch.attempt.number
            raise WorkerFenced(session.attempt, current)
        return watch

    def _give_order(self, order: Order) -> None:
        if order > self._order:
            self._order = order
        if self._watch is not None:
            self._watch.stop(self._order)
        self._ring()

    async def _pause(self, seconds: float, bell: asyncio.Event) -> bool:
        """Wait, unless the job is cancelled or the server leaves; returns whether that was so."""
        try:
            async with asyncio.timeout(seconds):
                await bell.wait()
        except TimeoutError:
            return False
        return True

    def _ring(self) -> None:
        self._bell.set()
        self._bell = asyncio.Event()
