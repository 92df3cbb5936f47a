"""An engine on an empty registry."""

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import onnx
import pytest

from headrace_server.database.database import Database
from headrace_server.inference.backends.backend import Backend
from headrace_server.inference.engine import Engine
from headrace_server.kernels.gate import ServingGate
from headrace_server.models.registry import Registry
from headrace_server.models.version import ModelVersion
from headrace_server.settings import InferenceSettings, ModelSettings
from headrace_server.storage.local import LocalBlobStore
from headrace_server.telemetry.metrics import Metrics
from tests.doubles.scripted_backend import ScriptedBackend

MakeEngine = Callable[..., Engine]
Publish = Callable[..., Awaitable[ModelVersion]]


def lane_threads() -> list[str]:
    """The names of the lanes that live."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lane-")]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def store(tmp_path: Path) -> LocalBlobStore:
    store = LocalBlobStore(tmp_path / "store")
    await store.open()
    return store


@pytest.fixture
async def registry(tmp_path: Path, store: LocalBlobStore) -> AsyncIterator[Registry]:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'headrace.db'}")
    yield Registry(database, store, ModelSettings(), tmp_path / "scratch")
    await database.close()


@pytest.fixture
async def make_engine(
    registry: Registry, store: LocalBlobStore, metrics: Metrics, tmp_path: Path
) -> AsyncIterator[MakeEngine]:
    """Make an engine with these settings; it is closed after the test."""
    engines: list[Engine] = []

    def make(backends: Sequence[Backend] | None = None, gate: ServingGate | None = None, **settings: object) -> Engine:
        values = InferenceSettings.model_validate(settings)
        engines.append(Engine(registry, store, values, metrics, tmp_path / "scratch", backends, gate=gate))
        return engines[-1]

    yield make
    for engine in engines:
        await engine.close()


@pytest.fixture
def publish(registry: Registry, tmp_path: Path) -> Publish:
    """Register an ONNX program as the next version of a model."""

    async def publish(program: onnx.ModelProto, model: str = "m") -> ModelVersion:
        path = tmp_path / f"{model}.onnx"
        onnx.save(program, path)
        return await registry.serve_path(model, path)

    return publish


@pytest.fixture
def backend() -> Iterator[ScriptedBackend]:
    """At the end it is let go, whatever it was told to wait for."""
    backend = ScriptedBackend()
    yield backend
    backend.may_open.set()
