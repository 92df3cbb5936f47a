"""A launcher whose workers live in this process and do what a script says: they attach, report, obey, and die.

They outlive the desk, as agents outlive the server: point `desk` at the next one and they attach to that.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from headrace_server.errors import Draining, JobNotFound, StorageFull, WorkerFenced
from headrace_server.launchers.launcher import CannotKill, CannotLaunch, Formation
from headrace_server.models.version import Artifact, ArtifactFormat, Lineage
from headrace_server.names import JobName
from headrace_server.storage.blob_store import BlobStore
from headrace_server.tensors import DataType, Signature, TensorSpec
from headrace_server.trainers.reports import EvaluationCompleted, PhaseChanged, StepCompleted
from headrace_server.training.assignment import ASSIGNMENT_FILE, PUBLISHED_EXPORT_FILE, Assignment, PublishedExport
from headrace_server.training.desk import TrainingDesk
from headrace_server.training.events import CheckpointSaved, LogLine, LogSource
from headrace_server.training.session import (
    Exported,
    Outcome,
    ReportContent,
    StopWorker,
    TrainerEnded,
    WorkerHello,
    WorkerReport,
    WorkerSession,
)

PROCESSES = 2  # an agent and its trainer


class ScriptedWorker:
    """One worker.  Reports are spooled until they are acknowledged, over as many connections as that takes."""

    def __init__(self, launcher: "ScriptedLauncher", assignment: Assignment) -> None:
        self.assignment = assignment
        self.is_alive = True
        self.was_fenced = False
        self.stops: list[StopWorker] = []
        self.profiles: list[int] = []
        self.stopped = asyncio.Event()
        self._launcher = launcher
        self._spool: list[WorkerReport] = []
        self._num_reports = 0
        self._session: WorkerSession | None = None
        self._turn = asyncio.Lock()
        self._dialling = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def attempt(self) -> int:
        return self.assignment.attempt

    @property
    def prefix(self) -> str:
        return self.assignment.artifact_prefix

    def begin(self) -> None:
        """Start living: the script, and a heart beside it."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._act()), loop.create_task(self._beat())]

    def die(self) -> None:
        """Stop at once, without a word: kill -9 of the agent and its trainer."""
        self.is_alive = False
        for task in self._tasks:
            task.cancel()
        self.hang_up()

    def hang_up(self) -> None:
        """Lose the connection."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def fall_silent(self) -> None:
        """Live on, but show no sign of it."""
        for task in self._tasks:
            task.cancel()

    async def say(self, *contents: ReportContent) -> None:
        """Report, and wait until it is durable."""
        for content in contents:
            self._num_reports += 1
            self._spool.append(WorkerReport(self._num_reports, datetime.now(UTC), content))
        await self.flush()

    async def flush(self) -> None:
        """Send what is not acknowledged until it is."""
        async with self._turn:
            while self._spool:
                session = await self._connect()
                try:
                    self._forget(await session.receive(list(self._spool)))
                except WorkerFenced:
                    if self._session is session:
                        self.was_fenced = True
                        raise
                except (Draining, StorageFull, OSError):
                    self.hang_up()
                    await asyncio.sleep(0.005)

    async def train(self, steps: range) -> None:
        """Report a phase and some steps."""
        await self.say(PhaseChanged(phase="training"))
        for step in steps:
            await self.say(a_step(step), LogLine(source=LogSource.STDOUT, text=f"step {step}"))

    async def evaluate(self, step: int, *, is_best: bool = True) -> None:
        """Report an evaluation."""
        await self.say(
            EvaluationCompleted(step=step, epoch=1, metrics={"loss": 1 / step}, is_best=is_best, num_rows=10)
        )

    async def save(self, step: int, *, is_best: bool = True) -> None:
        """Put a checkpoint into the store and report it."""
        key = f"{self.assignment.checkpoint_prefix}{step:012d}-{self.attempt:04d}/manifest.json"
        blob = await self._launcher.store.put_bytes(key, b"{}")
        await self.evaluate(step, is_best=is_best)
        await self.say(
            CheckpointSaved(uri=key, digest=blob.digest, step=step, is_best=is_best, size_bytes=blob.size_bytes)
        )

    async def export(self, step: int) -> None:
        """Put an export into the store and report it."""
        await self.say(PhaseChanged(phase="exporting"))
        content = f"program of attempt {self.attempt}".encode()
        blob = await self._launcher.store.put_bytes(f"{self.prefix}model.onnx", content)
        manifest = PublishedExport(
            signature=SIGNATURE,
            artifacts=(
                Artifact(
                    path="model.onnx",
                    format=ArtifactFormat.ONNX,
                    digest="sha256:" + hashlib.sha256(content).hexdigest(),
                    size_bytes=len(content),
                    key=blob.key,
                ),
            ),
            metrics={"loss": 0.5},
            lineage=Lineage(step=step, code_version="1"),
        )
        key = f"{self.prefix}{PUBLISHED_EXPORT_FILE}"
        await self._launcher.store.put_bytes(key, manifest.model_dump_json().encode())
        await self.say(Exported(key))

    async def end(self, ended: TrainerEnded) -> None:
        """Say the last word, and go."""
        await self.say(ended)
        self.is_alive = False
        self.hang_up()

    async def wait(self, seconds: float) -> bool:
        """Go on training for so long; returns whether it was told to stop meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self.stopped.wait()
        except TimeoutError:
            return False
        return True

    async def _act(self) -> None:
        try:
            await self._launcher.script(self)
        except (WorkerFenced, JobNotFound):
            self.was_fenced = True
        self.is_alive = False
        self._tasks[1].cancel()
        self.hang_up()

    async def _beat(self) -> None:
        while True:
            session = await self._connect()
            session.beat(trainer_pid=1000 + self.attempt)
            await asyncio.sleep(self.assignment.heartbeat_seconds)

    async def _listen(self, session: WorkerSession) -> None:
        async for stop in session.commands():
            if isinstance(stop, StopWorker):
                self.stops.append(stop)
                self.stopped.set()
            else:
                self.profiles.append(stop.num_steps)

    async def _connect(self) -> WorkerSession:
        async with self._dialling:
            return await self._dial()

    async def _dial(self) -> WorkerSession:
        while self._session is None or (self._session.is_closed and not self.was_fenced):
            hello = WorkerHello(
                JobName.parse(self.assignment.job), self.attempt, self.assignment.token, 100 + self.attempt, "here"
            )
            try:
                session = await self._launcher.desk.attach(hello)
            except (Draining, StorageFull, OSError):
                await asyncio.sleep(0.005)
                continue
            except (WorkerFenced, JobNotFound):
                self.was_fenced = True
                for task in self._tasks:
                    task.cancel()
                self.is_alive = False
                raise
            self._session = session
            self._forget(session.acknowledged)
            self._tasks.append(asyncio.get_running_loop().create_task(self._listen(session)))
        return self._session

    def _forget(self, acknowledged: int) -> None:
        self._spool = [report for report in self._spool if report.number > acknowledged]


Script = Callable[[ScriptedWorker], Awaitable[None]]


class ScriptedLauncher:
    """Launches ScriptedWorkers.  `desk` is where they attach; `script` what they do."""

    desk: TrainingDesk

    def __init__(self, store: BlobStore, script: Script) -> None:
        self.store = store
        self.script = script
        self.workers: dict[tuple[str, int], ScriptedWorker] = {}
        self.kills: list[tuple[str, int, int]] = []
        self.waits: list[tuple[str, int]] = []
        """Who was let end by itself."""
        self.cannot_launch = 0
        """So many launches fail."""
        self.cannot_kill = 0
        """So many kills find a process that does not die."""
        self.sees_ends = True
        """Else its workers are on a machine of their own."""
        self.fault: Exception | None = None
        """What launching raises that nobody expects."""
        self.may_kill = asyncio.Event()
        self.may_kill.set()

    def form(self, job: str, attempt: int, num_ranks: int) -> Formation:
        """One machine."""
        return Formation()

    async def launch(self, job: str, attempt: int, folder: Path) -> None:
        """Read the assignment, and begin."""
        if self.fault is not None:
            raise self.fault
        if self.cannot_launch > 0:
            self.cannot_launch -= 1
            raise CannotLaunch("no more processes")
        text = await asyncio.to_thread((folder / ASSIGNMENT_FILE).read_text)
        living = [worker.attempt for key, worker in self.workers.items() if key[0] == job and worker.is_alive]
        assert not living, f"attempt {attempt} of {job} was launched while {living} lived"
        worker = self.workers[job, attempt] = ScriptedWorker(self, Assignment.model_validate_json(text))
        worker.begin()

    async def ending(self, job: str, attempt: int, folder: Path) -> str | None:
        """See whether a worker lives, as one sees a process on the same machine."""
        worker = self.workers.get((job, attempt))
        return None if worker is None or worker.is_alive or not self.sees_ends else "was ended by SIGKILL"

    async def wait(self, job: str, attempt: int, folder: Path, seconds: float) -> bool:
        """Nobody here takes any time to end."""
        self.waits.append((job, attempt))
        return True

    async def kill(self, job: str, attempt: int, folder: Path, trainer_pid: int) -> int:
        """End a worker of whichever server."""
        self.kills.append((job, attempt, trainer_pid))
        await self.may_kill.wait()
        if self.cannot_kill > 0:
            self.cannot_kill -= 1
            raise CannotKill([trainer_pid])
        worker = self.workers.get((job, attempt))
        if worker is None or not worker.is_alive:
            return 0
        worker.die()
        return PROCESSES

    def newest(self, job: str) -> ScriptedWorker:
        """The newest worker of a job."""
        return self.workers[max(key for key in self.workers if key[0] == job)]

    async def close(self) -> None:
        """End everybody."""
        tasks = [task for worker in self.workers.values() for task in worker._tasks]
        for worker in self.workers.values():
            worker.die()
        await asyncio.gather(*tasks, return_exceptions=True)


def a_step(step: int, loss: float | None = None) -> StepCompleted:
    """A report of one step."""
    return StepCompleted(
        step=step,
        epoch=1,
        fraction=min(1.0, step / 100),
        loss=1 / step if loss is None else loss,
        learning_rate=0.001,
        samples_per_second=1000.0,
    )


async def finish(worker: ScriptedWorker) -> None:
    """The script of a training in which nothing goes wrong."""
    await worker.train(range(1, 4))
    await worker.save(3)
    await worker.export(3)
    await worker.end(TrainerEnded(Outcome.FINISHED, exit_code=0))


SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", data_type=DataType.FP32, shape=(-1, 2)),),
    outputs=(TensorSpec(name="y", data_type=DataType.FP32, shape=(-1, 3)),),
)
