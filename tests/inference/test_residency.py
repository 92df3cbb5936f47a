"""Which versions stay in memory, and what a version that does not fit is told."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import onnx
import pytest

from headrace_server.errors import DeviceOutOfMemory
from headrace_server.inference.engine import Engine, Readiness
from headrace_server.memory import RESERVE_BYTES, Ledger
from headrace_server.models.registry import Registry
from headrace_server.models.serving import ServingOptions
from headrace_server.names import ModelName
from headrace_server.settings import InferenceSettings
from headrace_server.storage.local import LocalBlobStore
from headrace_server.telemetry.metrics import Metrics
from headrace_server.tensors import Array
from tests.doubles.onnx_models import mlp
from tests.doubles.scripted_backend import ScriptedBackend

X: dict[str, Array] = {"x": np.zeros((1, 64), np.float32)}
EACH = 1000
"""Bytes that a version takes once it is loaded."""


class Machine:
    """Every load takes so much of what is available."""

    def __init__(self, room: int, backend: ScriptedBackend) -> None:
        self.room, self.backend = room, backend

    @property
    def taken(self) -> int:
        return self.backend.num_open * EACH

    def ledger(self) -> Ledger:
        return Ledger(0, lambda: self.room - self.taken + RESERVE_BYTES, lambda: self.taken)


@pytest.fixture
async def engine(registry: Registry, store: LocalBlobStore, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Room for two and a half versions; models a, b, c, d."""
    backend = ScriptedBackend()
    backend.act = lambda inputs: {"y": np.zeros((len(inputs["x"]), 10), np.float32)}
    machine = Machine(int(2.5 * EACH), backend)
    path = tmp_path / "model.onnx"
    for name in "abcd":
        onnx.save(mlp((64, 1, 10), seed=ord(name)), path)
        await registry.serve_path(name, path)
    engine = Engine(
        registry, store, InferenceSettings(), Metrics(), tmp_path / "scratch", [backend], ledger=machine.ledger()
    )
    engine._residency._room._expected_bytes = lambda version: EACH
    yield engine
    await engine.close()


async def ask(engine: Engine, *names: str) -> None:
    for name in names:
        await engine.predict(ModelName(name), X)


def loaded(engine: Engine) -> set[str]:
    return {version.model for version in engine.loaded()}


async def pin(registry: Registry, *names: str) -> None:
    for name in names:
        await registry.change_serving(name, lambda _: ServingOptions(is_pinned=True))


async def test_the_least_recently_used_leaves_when_memory_ends_and_returns_on_demand(engine: Engine) -> None:
    await ask(engine, "a", "b", "a", "c")
    assert loaded(engine) == {"a", "c"}

    await ask(engine, "b")

    assert loaded(engine) == {"b", "c"}


async def test_pinned_ones_stay_whoever_else_asks(engine: Engine, registry: Registry) -> None:
    await pin(registry, "a")

    await ask(engine, "a", "b", "c", "d")

    assert loaded(engine) == {"a", "d"}


async def test_a_version_that_cannot_fit_says_how_much_is_missing_and_what_is_loaded_goes_on(
    engine: Engine, registry: Registry
) -> None:
    await pin(registry, "a", "b")
    await ask(engine, "a", "b")

    with pytest.raises(DeviceOutOfMemory, match="500 bytes are missing") as caught:
        await ask(engine, "c")

    assert (caught.value.missing_bytes, caught.value.retry_after) == (500, timedelta(seconds=5))
    assert (await engine.status(ModelName("c"))).readiness is Readiness.FAILED
    await ask(engine, "a", "b")


async def test_a_model_that_is_no_longer_pinned_may_leave(engine: Engine, registry: Registry) -> None:
    await pin(registry, "a", "b")
    await ask(engine, "a", "b")
    await registry.change_serving("a", lambda _: ServingOptions())

    await ask(engine, "c")

    assert loaded(engine) == {"b", "c"}


async def test_a_device_that_has_no_memory_left_when_a_version_is_opened_gets_some_from_idle_ones(
    registry: Registry, store: LocalBlobStore, tmp_path: Path
) -> None:
    backend = ScriptedBackend()
    backend.device, backend.room = "cuda:0", 2
    backend.act = lambda inputs: {"y": np.zeros((len(inputs["x"]), 10), np.float32)}
    for name in "abc":
        onnx.save(mlp((64, 1, 10), seed=ord(name)), tmp_path / "model.onnx")
        await registry.serve_path(name, tmp_path / "model.onnx")
    engine = Engine(registry, store, InferenceSettings(), Metrics(), tmp_path / "scratch", [backend])

    await ask(engine, "a", "b", "a", "c")
    assert loaded(engine) == {"a", "c"}

    await pin(registry, "a", "c")
    with pytest.raises(DeviceOutOfMemory, match="cuda:0 is out of memory"):
        await ask(engine, "b")
    assert loaded(engine) == {"a", "c"}
    await engine.close()


async def test_idle_models_leave_for_a_training_job_and_what_is_pinned_or_in_use_stays(
    engine: Engine, registry: Registry
) -> None:
    await pin(registry, "a")
    await ask(engine, "a", "b")

    fits = await engine.make_room(int(1.5 * EACH))
    assert (fits, loaded(engine)) == (0, {"a"})

    missing = await engine.make_room(2 * EACH)
    assert (missing, loaded(engine)) == (500, {"a"})


def test_a_job_takes_the_memory_that_a_limit_keeps_from_models() -> None:
    ledger = Ledger(EACH, lambda: 10 * EACH + RESERVE_BYTES, lambda: 0)

    assert (ledger.free_bytes(500, 200), ledger.free_for_jobs(200)) == (300, 10 * EACH - 200)
