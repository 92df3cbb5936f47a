"""The desk of training: takes jobs in, shows them, cancels them, and sees to it that each gets its turn.

Everything else of this folder is behind it.  Knows no wire.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import structlog

from headrace_server.database.database import Database
from headrace_server.devices import Devices
from headrace_server.errors import (
    Draining,
    HeadraceError,
    IllegalTransition,
    InvalidSpec,
    NameTaken,
    Violation,
    WorkerFenced,
)
from headrace_server.launchers.launcher import CannotKill, Launcher
from headrace_server.names import JobName, is_id, new_job_id
from headrace_server.pages import Page, PageRequest
from headrace_server.settings import SinkSettings, TrainingSettings
from headrace_server.storage.blob_store import BlobStore
from headrace_server.telemetry.metrics import Metrics
from headrace_server.training import verbs
from headrace_server.training.admission import Admission
from headrace_server.training.comparison import Comparer, Comparison
from headrace_server.training.draft import StartRequest
from headrace_server.training.events import Event, LogEntry
from headrace_server.training.filter import parse_filter
from headrace_server.training.goods import Datasets, KnownFamilies, Models
from headrace_server.training.job import Job
from headrace_server.training.jobs import JobStore
from headrace_server.training.journals import Journals, Stream
from headrace_server.training.leftovers import Leftovers
from headrace_server.training.means import Means
from headrace_server.training.memory_room import Memory, MemoryRoom
from headrace_server.training.owned_tasks import OwnedTasks
from headrace_server.training.publication import Publisher
from headrace_server.training.session import WorkerHello, WorkerSession
from headrace_server.training.sinks.following import Following
from headrace_server.training.sinks.thread import SinkThread
from headrace_server.training.spec import TrainingSpec
from headrace_server.training.start_points import StartPoints
from headrace_server.training.states import JobState
from headrace_server.training.turns import Turns
from headrace_server.training.verbs import Verb
from headrace_server.training.watch import Order
from headrace_server.training.workers import Workers, profile_prefix

LONGEST_REASON = 1000
NEW_ID_TRIES = 5

log = structlog.get_logger()


class TrainingDesk:
    """All of training, for the doors of the house."""

    def __init__(
        self,
        database: Database,
        datasets: Datasets,
        models: Models,
        store: BlobStore,
        launcher: Launcher,
        families: KnownFamilies,
        settings: TrainingSettings,
        metrics: Metrics,
        *,
        worker_address: str,
        workspaces: Path,
        store_root: Path,
        quiet_seconds: float,
        gate: Path | None = None,
        sinks: Sequence[tuple[SinkSettings, SinkThread]] = (),
        devices: Callable[[], Devices],
        memory: Memory | None = None,
    ) -> None:
        """`memory` is what jobs share with models; without it they begin whatever they take.  `quiet_seconds`:
        after how long with nothing to say a reader gets None (`server.heartbeat_seconds`).

        `worker_address` is where agents dial, `workspaces` the folder in which each has one of its own, `store_root`
        the folder of the store that they share, `gate` the file where those wait that give way to predictions; `sinks`
        are told of everything.
        """
        self._store = store
        self._quiet_seconds = quiet_seconds
        self._tasks = OwnedTasks()
        self._journals = Journals(database, metrics)
        self._jobs = JobStore(database, self._journals, settings, metrics)
        self._comparer = Comparer(self._jobs, models, database)
        self._admission = Admission(families, datasets, StartPoints(models, self._jobs, store), devices)
        self._room = None if memory is None else MemoryRoom(memory, datasets, devices)
        self._workers = Workers(
            launcher, settings, worker_address=worker_address, workspaces=workspaces, store_root=store_root, gate=gate
        )
        self._leftovers = Leftovers(store, models)
        means = Means(
            self._jobs,
            self._workers,
            Publisher(store, models),
            self._leftovers,
            datasets,
            settings,
            metrics,
            self._tasks,
            room=self._room,
        )
        self._turns = Turns(means)
        self._following = Following(sinks, database, metrics)
        self._journals.listen(self._following.ring)

    # Beginning and end.

    async def open(self) -> None:
        """Go on where an earlier process left: jobs that wait, wait again; workers may come back; nothing is lost.

        Open the door for workers soon afterwards: they have a few leases to come back.
        """
        self._turns.open(await self._jobs.live())
        self._following.open()
        self._tasks.run(self._sweep())

    async def drain(self) -> None:
        """Give out no more turns, let workers checkpoint and end (or leave them alone), then end all readers.

        Takes at most a little longer than the grace period of a worker.
        """
        await self._turns.drain()
        await self._following.drain()
        self._journals.drain()

    async def close(self) -> None:
        """Stop everything of this process; workers that still run are left alone.  May be called without `drain`."""
        self._journals.drain()
        self._turns.close()
        await self._tasks.close()
        await self._following.close()
        await self._jobs.close()

    # What callers ask for.

    async def start(self, request: StartRequest) -> Job:
        """Admit one job: durable when this returns, or exactly as it was when it raises.

        The same request id with the same body returns the same job.

        Raises InvalidSpec with every violation, DatasetNotFound, DeviceOutOfMemory with what is missing when this
        machine can never give it the least that it takes, RequestIdReused, NameTaken, QueueFull, Draining.
        """
        if self._turns.are_over:
            raise Draining
        if request.request_id and not request.validate_only:
            known = await self._jobs.find_request(request.request_id, request.body_digest)
            if known is not None:
                return known
        spec = await self._admission.admit(request)
        if self._room is not None:
            await self._room.check(spec)
        if request.validate_only:
            return await self._rehearse(request, spec)
        with self._turns.reserve():
            return await self._tasks.finish(self._create(request, spec))

    async def get(self, name: JobName) -> Job:
        """One job as it is now.  Raises JobNotFound."""
        return (await self._jobs.get(name.job)).job

    async def list(self, page: PageRequest, filter: str) -> Page[Job]:  # noqa: A002 - the contract's word
        """A page of jobs, newest first; `filter` as in `filter.py`.  Raises InvalidSpec, InvalidPageToken."""
        return await self._jobs.list(page, parse_filter(filter))

    async def compare(self, names: Sequence[JobName]) -> Comparison:
        """Put jobs side by side, in the order given.  Raises JobNotFound, InvalidSpec."""
        return await self._comparer.compare(names)

    async def cancel(self, name: JobName, *, kill: bool, reason: str) -> Job:
        """Ask a live job to stop and return it as it is then: CANCELLING, or CANCELLED when it has no worker.

        Repeating is harmless, and a kill may follow.  Raises JobNotFound, InvalidSpec, IllegalTransition once over.
        """
        _check_reason(reason)
        change = partial(verbs.cancel, reason=reason)
        return await self._tasks.finish(self._ask(name, change, Order.KILL if kill else Order.GRACEFUL))

    async def pause(self, name: JobName, *, reason: str) -> Job:
        """Ask a job to rest after a checkpoint and return it as it is then: PAUSING, or PAUSED without a worker.

        Repeating is harmless.  Raises JobNotFound, InvalidSpec, IllegalTransition when it is ending or over.
        """
        _check_reason(reason)
        return await self._tasks.finish(self._ask(name, partial(verbs.pause, reason=reason), Order.GRACEFUL))

    async def resume(self, name: JobName) -> Job:
        """Let a paused job wait for its turn again: it goes on from its last checkpoint.

        Paused jobs that are resumed do not count against the limit of the queue.
        Raises JobNotFound, IllegalTransition unless it is paused or waits.
        """
        return await self._tasks.finish(self._resume(name))

    async def delete(self, name: JobName) -> None:
        """Remove a job that is over, with its history and its checkpoints; the version that it became stays.

        Raises JobNotFound, IllegalTransition while it is not over.
        """
        await self._tasks.finish(self._delete(name))

    async def profile(self, name: JobName, num_steps: int) -> None:
        """Have the next steps of a job recorded; the trace comes as an event.

        Raises JobNotFound, IllegalTransition unless it is running and its worker is connected.
        """
        job = (await self._jobs.get(name.job)).job
        supervisor = self._turns.supervisor(name.job)
        if job.state is not JobState.RUNNING or supervisor is None or not supervisor.profile(num_steps):
            raise IllegalTransition(str(name), job.state, "profile")

    async def read_profile(self, name: JobName, uri: str) -> AsyncIterator[bytes]:
        """The bytes of a trace.  Raises JobNotFound, InvalidSpec when the job has no such trace."""
        await self._jobs.get(name.job)
        known = await self._store.list(profile_prefix(name.job))
        if uri not in known:
            raise InvalidSpec([Violation("uri", f"{uri[:200]!r} is no trace of {name}")])
        return self._store.read(uri)

    async def live_job_using(self, dataset: str) -> Job | None:
        """A job that is not over and trains on the data set of that id; None when there is none."""
        return await self._jobs.live_job_using(dataset)

    def follow(self, name: JobName, after_sequence: int) -> AsyncIterator[Event | None]:
        """Every event after the cursor, each exactly once, in order; None after each quiet time.

        Ends after the event that ends the job.  Raises JobNotFound, InvalidSpec, CursorExpired, CursorAhead, Draining.
        """
        return self._journals.follow_events(name.job, after_sequence, self._quiet_seconds)

    def follow_logs(self, name: JobName, after_sequence: int) -> AsyncIterator[LogEntry | None]:
        """Every line of the log after the cursor, under the rules of `follow`."""
        return self._journals.follow_logs(name.job, after_sequence, self._quiet_seconds)

    async def latest(self, name: JobName, stream: Stream) -> int:
        """The sequence of the newest entry of a stream, 0 before the first.  Raises JobNotFound."""
        return await self._journals.latest(name.job, stream)

    # What agents ask for.

    async def attach(self, hello: WorkerHello) -> WorkerSession:
        """Connect the agent of a job's newest attempt.  Raises WorkerFenced, JobNotFound, Draining."""
        if supervisor := self._turns.supervisor(hello.job.job):
            return await supervisor.attach(hello)
        stored = await self._jobs.get(hello.job.job)
        if stored.job.state.has_worker:
            raise Draining  # this process has not taken over yet, or no longer looks after it: come again
        raise WorkerFenced(hello.attempt, stored.attempt.number + 1)

    # The rest.

    async def _create(self, request: StartRequest, spec: TrainingSpec) -> Job:
        for _ in range(NEW_ID_TRIES):
            job = _new_job(request, spec)
            try:
                job, is_new = await self._jobs.create(job, request.body_digest)
            except NameTaken:
                if request.job_id:
                    raise
                continue  # two ids of the same second are the same once in four thousand million times
            if is_new:
                self._turns.queue(job)
            return job
        raise NameTaken(str(job.name))

    async def _rehearse(self, request: StartRequest, spec: TrainingSpec) -> Job:
        job = _new_job(request, spec)
        if request.job_id and await self._jobs.exists(job.id):
            raise NameTaken(str(job.name))
        return job

    async def _ask(self, name: JobName, change: Verb, order: Order) -> Job:
        """Change a job as a verb says, and pass `order` on to the worker that it may have."""
        supervisor = self._turns.supervisor(name.job)
        if supervisor is None:
            job = await self._jobs.amend(name.job, lambda it: change(it, is_clear=False))
            self._turns.forget(job.id)
            # It may have got its turn meanwhile; and one that waits to be continued may have processes left.
            supervisor = self._turns.supervisor(name.job)
            if supervisor is None and job.state.has_worker and not self._turns.are_over:
                supervisor = self._turns.give(job)
        else:
            async with supervisor.deciding:
                await supervisor.settle()
                clear = supervisor
                job = await self._jobs.amend(name.job, lambda it: change(it, is_clear=clear.is_clear))
        if supervisor is not None:
            supervisor.stop(order if job.state.has_worker else Order.NONE)
        return job

    async def _resume(self, name: JobName) -> Job:
        job = await self._jobs.amend(name.job, verbs.resume)
        self._turns.queue(job)
        return job

    async def _delete(self, name: JobName) -> None:
        job = (await self._jobs.get(name.job)).job
        if not job.state.is_terminal:
            raise IllegalTransition(str(name), job.state, "delete")
        # The row goes last: until then the same call finishes what was begun.
        await self._workers.remove_job(job.id)
        await self._leftovers.remove(job)
        await self._jobs.delete(job.id)

    async def _sweep(self) -> None:
        """Finish cleaning up after jobs that were over when an earlier process ended."""
        for job in await self._workers.jobs_with_folders():
            if self._turns.supervisor(job) is not None or not is_id(job):
                continue
            try:
                if not await self._jobs.exists(job):
                    continue
                stored = await self._jobs.get(job)
                if stored.job.state.is_terminal:
                    await self._workers.remove(job, stored.attempt)
                    await self._leftovers.sweep(stored.job)
                    await self._workers.remove_job(job)
            except (HeadraceError, OSError, CannotKill) as error:
                log.warning("training.not_cleaned_up", job=job, error=repr(error))


def _new_job(request: StartRequest, spec: TrainingSpec) -> Job:
    return Job(
        id=request.job_id or new_job_id(),
        spec=spec,
        labels=request.labels,
        request_id=request.request_id,
        state=JobState.QUEUED,
        created_at=datetime.now(UTC),
    )


def _check_reason(reason: str) -> None:
    if len(reason) > LONGEST_REASON:
        raise InvalidSpec([Violation("reason", f"must be at most {LONGEST_REASON} characters")])
