"""From the name of a job's checkpoint to a version that the engine can run, and from one checkpoint to the next.

A name that moves (`@latest`, `@best`) means the checkpoint that is loaded for it.  Whenever it is asked for and there
is a newer one, that is made and loaded behind it; then the name moves on, and the older one leaves when its calls are
finished.  So nobody waits for a checkpoint but the first who asks.  Jobs are looked at a few times a second at most.
Belongs to the event loop.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TypeAlias

import structlog

from headrace_server.errors import (
    CheckpointNotFound,
    HeadraceError,
    ModelFailed,
    ModelLoading,
    ModelNotLoaded,
    NoCheckpointYet,
)
from headrace_server.inference.errands import Errands
from headrace_server.inference.live.jobs import Jobs
from headrace_server.inference.live.shared_work import SharedWork
from headrace_server.inference.live.templates import WEIGHTS, MadeProgram
from headrace_server.inference.prediction import Readiness, Staleness
from headrace_server.models.snapshot import Snapshot
from headrace_server.models.version import Lineage, ModelVersion
from headrace_server.names import JobName, SnapshotName
from headrace_server.storage.blob_store import Blob
from headrace_server.trainers.live_job import KeptCheckpoint, LiveJob

LOOK_SECONDS = 0.25
"""How old what is known of a job may be."""
RETRY_SECONDS = 5.0
"""How long a name stays where it is when the next checkpoint could not be loaded, and how long a failure is told."""
ATTEMPTS = 5
"""How often a name that moves is followed while its checkpoints go away faster than they are read."""
MOST_JOBS = 256
MOST_SNAPSHOTS = 64
"""Programs that are kept ready; a name that moves, and the one it moves to, are never among those that go first."""
_Key: TypeAlias = tuple[str, bool]  # of a manifest, and whether averaged weights are wanted
AVERAGED = "best.safetensors"

log = structlog.get_logger()


class Loaded(Protocol):
    """The part of the residency that this needs."""

    def readiness(self, version: ModelVersion) -> Readiness:
        """How a version is."""
        ...

    async def load(self, version: ModelVersion) -> None:
        """Load a version; returns when it answers."""
        ...

    async def unload(self, version: ModelVersion) -> None:
        """Let a version go when its calls are finished.  Raises ModelNotLoaded."""
        ...


class Programs(Protocol):
    """What makes programs; `Templates` does."""

    async def sweep(self) -> None:
        """Remove the programs that an earlier process has left."""
        ...

    async def prepare(self, name: str, job: LiveJob) -> None:
        """Do what is done once for a job, and may take long.  Raises ModelFailed, StorageFull, OSError."""
        ...

    async def program(self, name: str, job: LiveJob, weights: Blob) -> MadeProgram:
        """Make the program of a checkpoint.  Raises KeyError when the weights are not kept any more, and as before."""
        ...

    async def remove(self, program: MadeProgram) -> None:
        """Remove a program that nobody needs any more."""
        ...


@dataclass(slots=True)
class _Glance:
    job: LiveJob
    at: float


@dataclass(slots=True)
class _Place:
    """Where a name that moves is."""

    snapshot: Snapshot
    manifest_key: str
    is_moving: bool = False
    stays_until: float = 0.0


class Snapshots:
    """The checkpoints that are, or were lately, asked for."""

    def __init__(
        self,
        jobs: Jobs,
        programs: Programs,
        loaded: Loaded,
        errands: Errands,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._jobs = jobs
        self._programs = programs
        self._loaded = loaded
        self._errands = errands
        self._clock = clock
        self._glances: OrderedDict[JobName, _Glance] = OrderedDict()
        self._places: OrderedDict[SnapshotName, _Place] = OrderedDict()
        self._templates_under_way = SharedWork[JobName, None](errands, clock, RETRY_SECONDS)
        self._programs_under_way = SharedWork[_Key, Snapshot](errands, clock, RETRY_SECONDS)
        self._prepared: OrderedDict[JobName, None] = OrderedDict()
        self._made: OrderedDict[_Key, tuple[Snapshot, MadeProgram]] = OrderedDict()

    async def sweep(self) -> None:
        """Remove the programs that an earlier process has left."""
        await self._programs.sweep()

    async def find(self, name: SnapshotName, deadline: float | None = None) -> Snapshot:
        """What answers for a name now; `deadline` is on time.monotonic().

        Raises JobNotFound, NoCheckpointYet, CheckpointNotFound, ModelFailed when its program cannot be made, or
        ModelLoading when it is not made by the deadline.
        """
        try:
            async with asyncio.timeout(None if deadline is None else max(deadline - time.monotonic(), 0)):
                return await self._find(name)
        except TimeoutError:
            raise ModelLoading(str(name)) from None

    def staleness(self, snapshot: Snapshot) -> Staleness:
        """How far a checkpoint is behind its job, as far as is known."""
        glance = self._glances.get(snapshot.name.job)
        job = glance.job if glance is not None else None
        until = job.ended_at if job is not None and job.ended_at is not None else datetime.now(UTC)
        return Staleness(
            steps=max(0, job.latest_step - snapshot.version) if job is not None else 0,
            age_seconds=max(0.0, (until - snapshot.created_at).total_seconds()),
        )

    # Inside.

    async def _find(self, name: SnapshotName) -> Snapshot:
        job = await self._look(name.job)
        place = self._places.get(name) if name.alias else None
        if place is not None and self._loaded.readiness(place.snapshot) in (Readiness.READY, Readiness.LOADING):
            self._places.move_to_end(name)
            self._move_on(name, place, job)
            return place.snapshot
        await self._manifest_key(name, job)  # where there is no checkpoint, nothing is made
        snapshot, manifest_key = await self._reach(name)
        if name.alias:
            self._places[name] = _Place(snapshot, manifest_key)
            if len(self._places) > 2 * MOST_JOBS:
                self._places.popitem(last=False)
        return snapshot

    async def _reach(self, name: SnapshotName) -> tuple[Snapshot, str]:
        """The checkpoint of a name as a program, and the key of its manifest.

        A training that goes on may remove a checkpoint at any moment, but not before it has written a newer one.
        """
        await self._prepare(name)
        missing = ""
        for attempt in range(ATTEMPTS):
            job = await self._look(name.job, is_new=attempt > 0)
            manifest_key = await self._manifest_key(name, job)
            try:
                if manifest_key != missing:
                    return await self._make(name, job, manifest_key), manifest_key
            except CheckpointNotFound:
                missing = manifest_key
        raise CheckpointNotFound(str(name), list(await self._jobs.kept(name.job)))

    async def _prepare(self, name: SnapshotName) -> None:
        """Have the template of the job made before a checkpoint is chosen, because that may take long."""
        if name.job in self._prepared:
            self._prepared.move_to_end(name.job)
            return

        async def work() -> None:
            try:
                await self._programs.prepare(str(name.job), await self._look(name.job))
            except OSError as error:
                raise ModelFailed(str(name.job), f"its program cannot be stored: {error}") from error

        await self._templates_under_way.result(name.job, work)
        self._prepared[name.job] = None
        if len(self._prepared) > MOST_JOBS:
            self._prepared.popitem(last=False)

    async def _look(self, name: JobName, *, is_new: bool = False) -> LiveJob:
        glance = self._glances.get(name)
        if is_new or glance is None or self._clock() - glance.at >= LOOK_SECONDS:
            glance = self._glances[name] = _Glance(await self._jobs.look(name), self._clock())
            if len(self._glances) > MOST_JOBS:
                self._glances.popitem(last=False)
        self._glances.move_to_end(name)
        return glance.job

    async def _manifest_key(self, name: SnapshotName, job: LiveJob) -> str:
        if name.alias is not None:
            found = _of_alias(name, job)
            if found is None and not job.is_over:
                raise NoCheckpointYet(str(name), job.state)
        else:
            assert name.version is not None
            found = next((key for key, _ in self._made if _step_of(key, name)), None)
            if found is None:
                found = (await self._jobs.kept(name.job)).get(name.version)
        if found is None:
            raise CheckpointNotFound(str(name), list(await self._jobs.kept(name.job)))
        return found

    def _move_on(self, name: SnapshotName, place: _Place, job: LiveJob) -> None:
        """Begin to load a newer checkpoint, if there is one."""
        newest = _of_alias(name, job)
        if newest is None or newest == place.manifest_key or place.is_moving or self._clock() < place.stays_until:
            return
        if self._loaded.readiness(place.snapshot) is Readiness.READY:
            place.is_moving = True
            self._errands.start(self._move(name, place))

    async def _move(self, name: SnapshotName, place: _Place) -> None:
        old = place.snapshot
        try:
            snapshot, manifest_key = await self._reach(name)
            if snapshot.key != old.key:
                await self._loaded.load(snapshot)
        except HeadraceError as error:
            place.stays_until = self._clock() + RETRY_SECONDS
            log.warning("live.stays", model=str(name), step=old.version, problem=str(error))
            return
        finally:
            place.is_moving = False
        place.snapshot, place.manifest_key = snapshot, manifest_key
        log.info("live.moved_on", model=str(name), step=snapshot.version, before=old.version)
        if not self._is_used(old):
            with suppress(ModelNotLoaded):
                await self._loaded.unload(old)

    def _is_used(self, snapshot: Snapshot) -> bool:
        return any(place.snapshot.key == snapshot.key for place in self._places.values())

    async def _make(self, name: SnapshotName, job: LiveJob, manifest_key: str) -> Snapshot:
        key = (manifest_key, name.alias == "best")
        if (made := self._made.get(key)) is not None:
            self._made.move_to_end(key)
            return made[0]
        return await self._programs_under_way.result(key, lambda: self._make_anew(name, job, key))

    async def _make_anew(self, name: SnapshotName, job: LiveJob, key: _Key) -> Snapshot:
        manifest_key, prefers_averaged = key
        try:
            checkpoint = await self._jobs.open(job.name, manifest_key)
            averaged = checkpoint.files.get(AVERAGED) if prefers_averaged else None
            program = await self._programs.program(str(name), job, averaged or checkpoint.files[WEIGHTS])
        except KeyError:
            raise CheckpointNotFound(str(name), list(await self._jobs.kept(job.name))) from None
        except OSError as error:
            raise ModelFailed(str(name), f"its checkpoint cannot be read: {error}") from error
        snapshot = _snapshot(job, checkpoint, program)
        self._made[key] = (snapshot, program)
        await self._forget_oldest()
        return snapshot

    async def _forget_oldest(self) -> None:
        """Remove programs that nobody needs; one that is asked for again is made again."""
        surplus = max(0, len(self._made) - MOST_SNAPSHOTS)
        idle = [key for key, (snapshot, _) in self._made.items() if not self._is_needed(snapshot)]
        for key in idle[:surplus]:
            _, program = self._made.pop(key)
            await self._programs.remove(program)

    def _is_needed(self, snapshot: Snapshot) -> bool:
        return self._is_used(snapshot) or self._loaded.readiness(snapshot) in (Readiness.READY, Readiness.LOADING)


def _of_alias(name: SnapshotName, job: LiveJob) -> str | None:
    return job.best if name.alias == "best" else job.latest


def _step_of(manifest_key: str, name: SnapshotName) -> bool:
    """Whether a manifest is that of the step that is named."""
    return f"/{name.job.job}/{name.version:012}-" in manifest_key


def _snapshot(job: LiveJob, checkpoint: KeptCheckpoint, program: MadeProgram) -> Snapshot:
    return Snapshot(
        model=str(job.name),
        version=checkpoint.step,
        signature=program.signature,
        artifacts=(program.artifact,),
        lineage=Lineage(
            training_job=str(job.name),
            dataset_version=job.dataset,
            dataset_digest=job.dataset_digest,
            checkpoint_digest=checkpoint.digest,
            step=checkpoint.step,
        ),
        created_at=checkpoint.saved_at,
    )
