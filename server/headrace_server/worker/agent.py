"""The agent of one attempt: brings the data, starts the trainer, publishes what it makes, and tells the server.

    starting → fetching_data → (the trainer's own phases) → publishing → TrainerEnded

Knows everything else in this folder and puts it together.  The line to the server is up from beginning to end, beside
whatever happens; orders to stop are obeyed in every phase.
"""

import asyncio
import os
import shutil
import socket
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import structlog

from headrace_server.errors import HeadraceError, Invalid
from headrace_server.launchers.launcher import CannotKill
from headrace_server.launchers.process import TRAINER_PID_FILE, clean_environment
from headrace_server.launchers.processes import MARK, name_of_signal, record
from headrace_server.names import JobName
from headrace_server.storage.blob_store import BlobStore
from headrace_server.trainers.job_file import JobFile
from headrace_server.trainers.recipe import Sharing
from headrace_server.trainers.reports import Failed, Finished, PhaseChanged, Stopped
from headrace_server.training.assignment import Assignment
from headrace_server.training.session import Outcome, StopWorker, TrainerEnded, WorkerHello
from headrace_server.worker.link import Dismissed, Link, Patience
from headrace_server.worker.materials import Materials
from headrace_server.worker.memory_counters import MemoryCounters
from headrace_server.worker.orders import Orders
from headrace_server.worker.outbox import Bounds, Outbox
from headrace_server.worker.persistence import Persistence
from headrace_server.worker.publisher import Publisher, Shelf
from headrace_server.worker.race import race
from headrace_server.worker.spare import SpareTrainer
from headrace_server.worker.spool import Spool
from headrace_server.worker.trainer_process import TRAINER_COMMAND
from headrace_server.worker.watch import Ending, Watch
from headrace_server.worker.world import EXIT_SECONDS, TrainerStart

STORE_LOST = "StoreLost"
"""The kind of error of an attempt that was given up because the store has refused for too long."""

T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ways:
    """How the agent goes about it; tests are more impatient, and have a trainer of their own."""

    trainer_command: Sequence[str] = TRAINER_COMMAND
    exit_seconds: float = EXIT_SECONDS
    leave_grace_seconds: float = 20.0
    """How long the trainer may take to end when the agent is told to leave, or has had no server for long."""
    publish_grace_seconds: float = 5.0
    """How long publishing may at least go on after the trainer was stopped."""
    farewell_seconds: float = 10.0
    """How long a leaving agent waits for its last reports to be acknowledged."""
    fetching: Persistence | None = None
    publishing: Persistence | None = None
    patience: Patience | None = None
    bounds: Bounds | None = None
    counters: MemoryCounters | None = None


class Agent:
    """One attempt at one job.  `folder` is where its assignment lies; its processes are marked with that."""

    def __init__(
        self,
        assignment: Assignment,
        folder: Path,
        store: BlobStore,
        ways: Ways | None = None,
        spare: SpareTrainer | None = None,
    ) -> None:
        """`spare` is a trainer that was started ahead of its job."""
        self._spare = spare
        self._assignment = assignment
        self._folder = folder
        self._store = store
        self._ways = ways or Ways()
        self._orders = Orders()
        self._is_leaving = False
        self._outbox = Outbox(Spool(assignment.workspace / "spool"), self._ways.bounds)
        self._publisher = Publisher(
            store,
            Shelf(
                self._trainer_folder,
                assignment.checkpoint_prefix,
                assignment.artifact_prefix,
                assignment.profile_prefix,
            ),
            assignment.recipe.checkpoints,
            self._outbox,
            self._ways.publishing or Persistence(assignment.store_patience_seconds),
        )
        self._watch: Watch | None = None
        self._link = Link(
            assignment.server_address,
            WorkerHello(
                job=JobName.parse(assignment.job),
                attempt=assignment.attempt,
                token=assignment.token,
                pid=os.getpid(),
                host=socket.gethostname(),
            ),
            self._outbox,
            heartbeat_seconds=assignment.heartbeat_seconds,
            detached_seconds=assignment.detached_seconds,
            on_stop=self._orders.give,
            on_profile=lambda command: self._watch.profile(command.num_steps) if self._watch else None,
            trainer_pid=lambda: self._watch.trainer_pid if self._watch else 0,
            patience=self._ways.patience,
        )

    def leave(self) -> None:
        """End the attempt with a checkpoint, because this machine or this process has to go."""
        self._is_leaving = True
        self._orders.give(StopWorker(kill=False, grace_seconds=self._ways.leave_grace_seconds))

    async def run(self) -> bool:
        """Make the attempt; returns whether the server keeps all of its reports.

        When the server has no more use for it (Dismissed), the trainer is killed at once and False is returned.
        """
        await self._outbox.open()
        try:
            return await self._attempt_beside_link()
        except* Dismissed as group:
            log.warning("agent.dismissed", why=str(group.exceptions[0]))
        finally:
            await self._end_spare()
            await asyncio.to_thread(self._clean_up)
            await self._outbox.close()
        return False

    async def _end_spare(self) -> None:
        """End a trainer that was started ahead of its job, and may have got none."""
        if self._spare is not None:
            await asyncio.to_thread(self._spare.tree.kill)

    @property
    def _gives_way(self) -> bool:
        return self._assignment.recipe.placement.mode is Sharing.YIELD

    @property
    def _trainer_folder(self) -> Path:
        return self._assignment.workspace / "trainer"

    async def _attempt_beside_link(self) -> bool:
        async with asyncio.TaskGroup() as tasks:
            link = tasks.create_task(self._link.run())
            detachment = tasks.create_task(self._leave_when_detached())
            outage = tasks.create_task(self._stop_when_store_is_lost())
            publishing = tasks.create_task(self._publisher.run())
            ended = await self._attempt()
            await self._end_spare()
            publishing.cancel()
            await self._outbox.add([ended])
            log.info("agent.ended", outcome=ended.outcome, exit_code=ended.exit_code, signal=ended.signal)
            is_kept = await self._say_farewell()
            link.cancel()
            detachment.cancel()
            outage.cancel()
        return is_kept

    async def _leave_when_detached(self) -> None:
        await self._link.detached.wait()
        log.warning("agent.detached", seconds=self._assignment.detached_seconds)
        self.leave()

    async def _stop_when_store_is_lost(self) -> None:
        """Nothing that is trained from now on could be kept."""
        await self._publisher.lost_store.wait()
        log.error("agent.store_lost", why=self._publisher.problem)
        self._orders.give(StopWorker(kill=True, grace_seconds=0))

    async def _attempt(self) -> TrainerEnded:
        """From the first phase to the trainer's end and everything published."""
        try:
            await self._outbox.add([PhaseChanged(phase="starting")])
            job_file = await self._unless_ordered(self._prepare())
            if job_file is None:
                return TrainerEnded(Outcome.STOPPED)
            ending = await self._train(job_file)
            is_published = await self._finish_publishing()
            return self._conclude(ending, is_published)
        except Invalid as error:
            return TrainerEnded(Outcome.FAILED, error=type(error).__name__, message=str(error))
        except (OSError, HeadraceError, CannotKill) as error:
            log.warning("agent.attempt_failed", error=str(error))
            return TrainerEnded(Outcome.DIED, last_lines=(f"{type(error).__name__}: {error}",))
        except Exception as error:
            # Ours.  The server hears of it now rather than when the lease runs out, and tries another attempt.
            log.exception("agent.fault")
            return TrainerEnded(Outcome.DIED, last_lines=(f"fault of the worker: {type(error).__name__}: {error}",))

    async def _prepare(self) -> Callable[[int], JobFile]:
        """Fetch what the trainer needs; returns what makes its job file from the descriptor for reports."""
        assignment = self._assignment
        await self._outbox.add([PhaseChanged(phase="fetching_data")])
        await asyncio.to_thread(self._trainer_folder.mkdir, parents=True, exist_ok=True)
        materials = Materials(self._store, assignment.workspace, self._outbox, self._ways.fetching)
        dataset = await materials.dataset(assignment.dataset_key, assignment.dataset_digest)
        checkpoint = None
        if assignment.resume_from is not None:
            checkpoint = await materials.checkpoint(assignment.checkpoint_prefix, assignment.resume_from)
        start = None
        if checkpoint is None and assignment.start_from is not None:
            start = await materials.weights(assignment.start_from.key, assignment.start_from.digest)
        job = JobFile(
            job=assignment.job,
            trainer=assignment.trainer,
            parameters=assignment.parameters,
            recipe=assignment.recipe,
            dataset_path=dataset,
            dataset_format=assignment.dataset_format,
            dataset_digest=assignment.dataset_digest,
            gate=assignment.gate if self._gives_way else None,
            workspace=self._trainer_folder,
            resume_from=checkpoint,
            start_from=start,
            compile_cache=assignment.compile_cache,
            report_descriptor=0,
        )
        return lambda descriptor: job.model_copy(update={"report_descriptor": descriptor})

    async def _train(self, job_file: Callable[[int], JobFile]) -> Ending:
        start = TrainerStart(
            folder=self._trainer_folder,
            job_file=job_file,
            environment={**clean_environment(os.environ), MARK: str(self._folder.resolve())},
            command=self._ways.trainer_command,
            exit_seconds=self._ways.exit_seconds,
            waiting=None if self._spare is None else self._spare.trainer,
            gives_way=self._gives_way,
            num_ranks=self._assignment.num_ranks,
            formation=self._assignment.formation,
        )
        tree = None if self._spare is None else self._spare.tree
        self._watch = Watch(start, self._orders, self._outbox, self._publisher.publish, self._ways.counters, tree)
        return await self._watch.run(lambda pid: record(self._folder / TRAINER_PID_FILE, pid))

    async def _finish_publishing(self) -> bool:
        """Wait until everything is published; after an order, only so long.  Returns whether everything was."""
        loop = asyncio.get_running_loop()
        begun_at = loop.time()
        while True:
            bell = self._orders.bell  # taken before looking, so that no ring is missed
            if self._orders.is_kill:
                return self._publisher.is_idle
            until = max(self._orders.deadline, begun_at + self._ways.publish_grace_seconds)
            left = max(0.0, until - loop.time()) if self._orders.is_given else None
            first = await race(self._publisher.wait_until_idle(), bell.wait(), seconds=left)
            if first == 0:
                return True
            if first is None:
                log.warning("agent.publishing_cut_short")
                return False

    def _conclude(self, ending: Ending, is_published: bool) -> TrainerEnded:
        """What to tell of the trainer's end."""
        signal = name_of_signal(ending.exit_code)
        ended = TrainerEnded(
            Outcome.DIED,
            exit_code=None if signal else ending.exit_code,
            signal=signal,
            out_of_memory=ending.out_of_memory,
            last_lines=ending.last_lines,
            num_killed=ending.num_killed,
        )
        if self._publisher.lost_store.is_set():
            return replace(ended, outcome=Outcome.FAILED, error=STORE_LOST, message=self._publisher.problem)
        match ending.last_word:
            case Failed(error=error, message=message):
                return replace(ended, outcome=Outcome.FAILED, error=error, message=message)
            case Stopped():
                return replace(ended, outcome=Outcome.STOPPED)
            case Finished() if self._publisher.has_published_export:
                return replace(ended, outcome=Outcome.FINISHED)
            case Finished() if not is_published:
                return replace(ended, outcome=Outcome.STOPPED)
            case Finished() if self._publisher.problem:
                return replace(ended, last_lines=(*ended.last_lines, self._publisher.problem)[-100:])
            case Finished():
                message = "the trainer finished without an export"
                return replace(ended, outcome=Outcome.FAILED, error="NoExport", message=message)
            case None if ending.was_stopped:
                return replace(ended, outcome=Outcome.STOPPED)
        return ended

    async def _say_farewell(self) -> bool:
        """Wait for the server to keep the last report; returns whether it does."""
        seconds = self._ways.farewell_seconds if self._is_leaving else self._assignment.detached_seconds + 60
        waits = [self._outbox.wait_until_acknowledged()]
        if not self._link.detached.is_set():
            waits.append(_until_set(self._link.detached))
        return await race(*waits, seconds=seconds) == 0

    async def _unless_ordered(self, act: Coroutine[Any, Any, T]) -> T | None:
        """Await `act`, or give it up for an order to stop and return None."""
        results: list[T] = []

        async def acting() -> None:
            results.append(await act)

        await race(acting(), self._orders.wait_until_given())
        return results[0] if results else None

    def _clean_up(self) -> None:
        """Remove what is large; the server removes the rest with the folder."""
        for name in ("data", "resume", "start", "trainer"):
            shutil.rmtree(self._assignment.workspace / name, ignore_errors=True)


async def _until_set(event: asyncio.Event) -> None:
    await event.wait()
