"""An engine that plans, on an empty registry."""

import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from headrace_server.database.database import Database
from headrace_server.devices import Devices
from headrace_server.inference.engine import Engine
from headrace_server.inference.plans.candidates import Means
from headrace_server.inference.plans.measuring_run import MEASURE_COMMAND
from headrace_server.inference.plans.planner import Planner
from headrace_server.inference.programs import Programs
from headrace_server.memory import Ledger
from headrace_server.models.plan_records import PlanRecords
from headrace_server.models.registry import Registry
from headrace_server.settings import InferenceSettings, ModelSettings
from headrace_server.storage.local import LocalBlobStore
from headrace_server.telemetry.metrics import Metrics
from tests.doubles import scripted_measurer

MakeEngine = Callable[..., Engine]
DEVICES = Devices(num_cores=2, memory_bytes=1 << 30, num_gpus=0, no_gpu_reason="none")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'headrace.db'}")
    yield database
    await database.close()


@pytest.fixture
async def store(tmp_path: Path) -> LocalBlobStore:
    store = LocalBlobStore(tmp_path / "store")
    await store.open()
    return store


@pytest.fixture
def registry(database: Database, store: LocalBlobStore, tmp_path: Path) -> Registry:
    return Registry(database, store, ModelSettings(accept_torch_uploads=True), tmp_path / "scratch")


@pytest.fixture
async def make_engine(
    registry: Registry, store: LocalBlobStore, database: Database, tmp_path: Path
) -> AsyncIterator[MakeEngine]:
    """Make an engine whose measuring process behaves as said, "" for the real one; it is closed after the test."""
    engines: list[Engine] = []

    def make(
        behaviour: str = "fast",
        devices: Devices = DEVICES,
        *,
        can_compile: bool = False,
        ledger: Ledger | None = None,
        **settings: object,
    ) -> Engine:
        values = InferenceSettings.model_validate(settings)
        script = (sys.executable, "-P", scripted_measurer.__file__, behaviour)

        def planner(programs: Programs) -> Planner:
            return Planner(
                store, PlanRecords(database), programs, tmp_path / "scratch", values, devices,
                Means(can_compile=can_compile), script if behaviour else MEASURE_COMMAND,
            )  # fmt: skip

        engines.append(Engine(registry, store, values, Metrics(), tmp_path / "scratch", plans=planner, ledger=ledger))
        return engines[-1]

    yield make
    for engine in engines:
        await engine.close()
