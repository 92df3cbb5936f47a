"""A training desk with everything around it: real database, store, catalog and registry; workers that follow a script.

`restart` is what happens to a server: it is closed as it stands, and another is opened on the same folder.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from headrace_server.database.database import Database
from headrace_server.datasets.catalog import Catalog
from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.devices import Devices
from headrace_server.models.registry import Registry
from headrace_server.names import JobName
from headrace_server.settings import DatasetSettings, ModelSettings, SinkSettings, TrainingSettings
from headrace_server.storage.local import LocalBlobStore
from headrace_server.telemetry.metrics import Metrics
from headrace_server.trainers.catalogue import Families
from headrace_server.training.desk import TrainingDesk
from headrace_server.training.draft import SpecDraft, StartRequest
from headrace_server.training.events import Event
from headrace_server.training.job import Job
from headrace_server.training.memory_room import Memory
from headrace_server.training.sinks.sink import SinkKind
from headrace_server.training.sinks.thread import SinkThread
from headrace_server.training.states import JobState
from tests.doubles.mortal_database import MortalDatabase
from tests.doubles.scripted_workers import Script, ScriptedLauncher, finish
from tests.doubles.sketch_family import SKETCH
from tests.doubles.until import until

PATIENT = TrainingSettings(
    heartbeat_seconds=0.05,
    lease_seconds=60,
    attach_seconds=60,
    cancel_grace_seconds=0.5,
    restart_backoff_seconds=0.01,
)
"""Quick at everything but at giving workers up: on a busy machine none may be given up that is there."""
IMPATIENT = PATIENT.model_copy(update={"lease_seconds": 0.6})
"""For tests in which a worker is silent, or does not obey."""
FLOWERS = b"length,width,kind\n1.0,2.0,a\n2.0,1.0,b\n3.0,0.5,b\n"


class TrainingHouse:
    """Everything that training needs, on one folder."""

    database: MortalDatabase
    catalog: Catalog
    registry: Registry
    desk: TrainingDesk
    metrics: Metrics

    def __init__(
        self,
        folder: Path,
        script: Script = finish,
        settings: TrainingSettings = PATIENT,
        kinds: Sequence[SinkKind] = (),
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.kinds = {kind.name: kind for kind in kinds}
        self.store = LocalBlobStore(folder / "store")
        self.launcher = ScriptedLauncher(self.store, script)
        self.devices = Devices(num_cores=2, memory_bytes=1 << 34, num_gpus=0, no_gpu_reason="a test")
        self.quiet_seconds = 30.0
        self.memory: Memory | None = None
        """What jobs share with models; set it before the desk is opened."""

    async def build(self) -> None:
        """Make the first server."""
        self.folder.mkdir(parents=True, exist_ok=True)
        await self.store.open()
        await self._open_database()
        await self.catalog.store("flowers", _chunks(FLOWERS), format=DatasetFormat.CSV, file_name="", digest="")
        await self.open_desk()

    async def open_desk(self) -> None:
        """Open the desk on the database that is open."""
        self.metrics = Metrics()
        self.desk = TrainingDesk(
            self.database,
            self.catalog,
            self.registry,
            self.store,
            self.launcher,
            Families(built_in=(SKETCH,), plugins=()),
            self.settings,
            self.metrics,
            sinks=[(one, self._sink(one)) for one in self.settings.sinks],
            worker_address="unix:/nowhere",
            workspaces=self.folder / "workspaces",
            store_root=self.folder / "store",
            quiet_seconds=self.quiet_seconds,
            devices=lambda: self.devices,
            memory=self.memory,
        )
        self.launcher.desk = self.desk
        await self.desk.open()

    async def restart(self) -> None:
        """Let the server die as it stands, and open the next one.  Workers live on."""
        await self.desk.close()
        await self.database.close()
        await self._open_database()
        await self.open_desk()

    async def close(self) -> None:
        """End everything."""
        await self.launcher.close()
        await self.desk.close()
        await self.database.close()

    def request(self, **changes: Any) -> StartRequest:
        """A request with which nothing is wrong; `draft` fields and request fields can be given."""
        draft: dict[str, Any] = {
            "dataset": "datasets/flowers",
            "trainer": "sketch",
            "parameters": {"target": "kind"},
            "model": "models/flowers",
            "max_restarts": 3,
        }
        fields = {key: changes.pop(key) for key in list(changes) if key in SpecDraft.__dataclass_fields__}
        changes.setdefault("body_digest", "0" * 64)
        return StartRequest(draft=SpecDraft(**{**draft, **fields}), **changes)

    async def start(self, **changes: Any) -> Job:
        """Start a job."""
        return await self.desk.start(self.request(**changes))

    async def history(self, job: Job, after: int = 0) -> list[Event]:
        """Every event of a job until it is over."""
        return [event async for event in self.desk.follow(job.name, after) if event is not None]

    async def over(self, job: Job) -> Job:
        """The job once it is over."""
        await self.history(job, 0)
        return await self.desk.get(job.name)

    async def cleaned_up(self, job: Job) -> None:
        """Wait until the folder of a job that is over is gone, which goes last."""
        folder = self.folder / "workspaces" / job.id
        await until(lambda: not folder.exists())

    async def cleared(self, job: Job) -> None:
        """Wait until no process of a job that lost its worker is left, and its supervisor knows."""
        await until(lambda: self.desk._turns._supervisors[job.id].is_clear)

    async def reached(self, job: Job, state: JobState, after: int = 0) -> Event:
        """The event with which the job reaches a state after a sequence."""
        async for event in self.desk.follow(job.name, after):
            if event is not None and getattr(event.happening, "to_state", None) is state:
                return event
        raise AssertionError(f"{job.id} ended without becoming {state}")

    async def seen(self, job: Job, kind: str, after: int = 0) -> Event:
        """The first event of a kind after a sequence."""
        async for event in self.desk.follow(job.name, after):
            if event is not None and event.happening.kind == kind:
                return event
        raise AssertionError(f"{job.id} ended without {kind}")

    def _sink(self, settings: SinkSettings) -> SinkThread:
        kind = self.kinds[settings.kind]
        return SinkThread(settings.name, lambda: kind.open(kind.options.model_validate(settings.options)))

    async def _open_database(self) -> None:
        database = await Database.open(f"sqlite+aiosqlite:///{self.folder / 'headrace.db'}")
        self.database = MortalDatabase(database._engine)
        self.catalog = Catalog(self.database, self.store, DatasetSettings(), self.folder / "scratch")
        self.registry = Registry(self.database, self.store, ModelSettings(), self.folder / "scratch")


def transitions(events: Sequence[Event]) -> list[str]:
    """The states that a history tells of, in order."""
    return [event.happening.to_state.value for event in events if event.happening.kind == "state_changed"]


def name(job: str) -> JobName:
    """Short for a name."""
    return JobName(job)


@asynccontextmanager
async def training_house(
    folder: Path, script: Script = finish, settings: TrainingSettings = PATIENT, kinds: Sequence[SinkKind] = ()
) -> AsyncIterator[TrainingHouse]:
    """A house that is open inside the block; `kinds` are those that `settings.sinks` names."""
    house = TrainingHouse(folder, script, settings, kinds)
    await house.build()
    try:
        yield house
    finally:
        await house.close()


async def _chunks(content: bytes) -> AsyncIterator[bytes]:
    yield content
