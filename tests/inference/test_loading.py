"""How versions come to be loaded, who waits for that, and why it fails."""

import asyncio
import time
from datetime import timedelta

import numpy as np
import pytest

from headrace_server.errors import (
    DeviceOutOfMemory,
    InvalidSpec,
    ModelFailed,
    ModelLoading,
    ModelNotLoaded,
    Unsupported,
)
from headrace_server.inference.engine import Readiness
from headrace_server.models.registry import Registry
from headrace_server.models.version import Artifact, ArtifactFormat, NewVersion
from headrace_server.names import ModelName
from headrace_server.storage.local import LocalBlobStore
from headrace_server.telemetry.metrics import Metrics
from headrace_server.tensors import Array, DataType, Signature, TensorSpec
from tests.doubles.gate_model import Gate
from tests.doubles.onnx_models import scale
from tests.doubles.scripted_backend import ScriptedBackend
from tests.doubles.until import until
from tests.inference.conftest import MakeEngine, Publish, lane_threads

M = ModelName("m")


def rows(*values: float) -> dict[str, Array]:
    return {"x": np.array([[value, -value] for value in values], np.float32)}


def value_of(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0


async def test_concurrent_first_calls_load_a_version_once(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend
) -> None:
    await publish(scale())
    engine = make_engine([backend])
    backend.may_open.clear()

    calls = [asyncio.create_task(engine.predict(M, rows(n))) for n in range(10)]
    await until(lambda: backend.num_opened == 1)
    assert (await engine.status(M)).readiness is Readiness.LOADING
    backend.may_open.set()
    await asyncio.gather(*calls)

    assert backend.num_opened == 1
    status = await engine.status(M)
    assert (status.readiness, status.backend, status.calls_in_flight) == (Readiness.READY, "onnxruntime", 0)


async def test_a_call_waits_for_loading_no_longer_than_its_deadline(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend
) -> None:
    await publish(scale())
    engine = make_engine([backend])
    backend.may_open.clear()

    with pytest.raises(ModelLoading):
        await engine.predict(M, rows(1), deadline=time.monotonic() + 0.05)
    backend.may_open.set()

    await engine.predict(M, rows(1), deadline=time.monotonic() + 30)
    assert backend.num_opened == 1


async def test_what_waits_for_a_loading_model_is_bounded(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend
) -> None:
    await publish(scale())
    engine = make_engine([backend], max_waiting_rows=3)
    backend.may_open.clear()
    await engine.status(M)  # from now on the name is resolved without a wait
    calls = [asyncio.create_task(engine.predict(M, rows(n))) for n in range(3)]
    await until(lambda: backend.num_opened == 1)

    with pytest.raises(ModelLoading):
        await engine.predict(M, rows(9))

    backend.may_open.set()
    await asyncio.gather(*calls)


async def test_a_failure_to_load_is_remembered_and_tried_again_by_an_explicit_load(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend
) -> None:
    await publish(scale())
    engine = make_engine([backend])
    backend.failure = ValueError("broken weights")

    for _ in range(3):
        with pytest.raises(ModelFailed, match="broken weights"):
            await engine.predict(M, rows(1))
    status = await engine.status(M)

    assert backend.num_opened == 1
    assert status.readiness is Readiness.FAILED
    assert isinstance(status.failure, ModelFailed)
    with pytest.raises(ModelFailed):
        await engine.load(M)
    backend.failure = None
    assert (await engine.load(M)).backend == "onnxruntime"
    assert (await engine.status(M)).failure is None
    await engine.predict(M, rows(1))


async def test_a_failure_for_want_of_memory_is_forgotten_after_a_while(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend
) -> None:
    await publish(scale())
    engine = make_engine([backend])
    backend.failure = DeviceOutOfMemory("cpu", retry_after=timedelta(milliseconds=50))
    with pytest.raises(DeviceOutOfMemory):
        await engine.predict(M, rows(1))
    backend.failure = None

    async with asyncio.timeout(10):
        while True:
            try:
                await engine.predict(M, rows(1))
                break
            except DeviceOutOfMemory:
                await asyncio.sleep(0.01)


async def test_loading_that_takes_too_long_fails_and_leaves_nothing_behind(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend
) -> None:
    await publish(scale())
    engine = make_engine([backend], load_seconds=0.1)
    backend.may_open.clear()

    with pytest.raises(ModelFailed, match=r"within 0\.1 seconds"):
        await engine.predict(M, rows(1))
    backend.may_open.set()

    await until(lambda: backend.num_open == 0 and not lane_threads())


async def test_the_least_recently_used_version_makes_room(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend, metrics: Metrics
) -> None:
    for model in ("a", "b", "c"):
        await publish(scale(), model)
    engine = make_engine([backend], max_loaded_versions=2)
    for model in ("a", "b", "a", "c"):
        await engine.predict(ModelName(model), rows(1))

    readiness = {model: (await engine.status(ModelName(model))).readiness for model in ("a", "b", "c")}

    assert readiness == {"a": Readiness.READY, "b": Readiness.UNLOADED, "c": Readiness.READY}
    assert backend.most_open == 2
    assert value_of(metrics, "headrace_loaded_versions") == 2


async def test_calls_that_borrow_nothing_keep_a_version_from_being_the_least_recently_used(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend
) -> None:
    for model in ("a", "b", "c"):
        await publish(scale(), model)
    engine = make_engine([backend], max_loaded_versions=2)
    for model in ("a", "b"):
        await engine.predict(ModelName(model), rows(1))

    asked_natively = next(one for one in engine._residency.residents if one.version.model == "a")
    await asked_natively.batcher.submit(rows(1), 8).future
    await engine.predict(ModelName("c"), rows(1))

    readiness = {model: (await engine.status(ModelName(model))).readiness for model in ("a", "b", "c")}
    assert readiness == {"a": Readiness.READY, "b": Readiness.UNLOADED, "c": Readiness.READY}


async def test_more_models_than_fit_all_answer_under_load(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend
) -> None:
    for model in "abcde":
        await publish(scale(), model)
    engine = make_engine([backend], max_loaded_versions=2)

    async with asyncio.timeout(60):
        await asyncio.gather(*(engine.predict(ModelName(model), rows(n)) for n in range(10) for model in "abcde"))

    assert backend.most_open <= 2


async def test_a_version_is_not_unloaded_while_a_call_has_it(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend
) -> None:
    await publish(scale())
    backend.act = gate = Gate()
    engine = make_engine([backend])
    call = asyncio.create_task(engine.predict(M, rows(1)))
    await until(lambda: gate.runs == 1)

    unloading = asyncio.create_task(engine.unload(M))
    await asyncio.wait([unloading], timeout=0.05)
    assert not unloading.done()
    assert backend.num_open == 1
    gate.is_open.set()

    assert (await call).outputs["y"].tolist() == [[2, -2]]
    assert (await unloading).version == 1
    assert backend.num_open == 0
    assert (await engine.status(M)).readiness is Readiness.UNLOADED
    with pytest.raises(ModelNotLoaded):
        await engine.unload(M)
    await engine.predict(M, rows(1))


async def test_who_asks_for_a_backend_gets_it_or_hears_why_not(make_engine: MakeEngine, publish: Publish) -> None:
    await publish(scale())
    engine = make_engine()

    assert (await engine.load(M, "onnxruntime")).backend == "onnxruntime"
    with pytest.raises(Unsupported, match="its files are ONNX"):
        await engine.load(M, "torch")
    with pytest.raises(InvalidSpec, match="'tensorrt' is not one of 'onnxruntime', 'torch'"):
        await engine.load(M, "tensorrt")
    assert (await engine.status(M)).readiness is Readiness.READY


async def test_a_program_that_is_not_what_was_registered_is_not_run(
    make_engine: MakeEngine, publish: Publish, store: LocalBlobStore
) -> None:
    version = await publish(scale(2))
    await store.put_bytes(version.artifacts[0].key, scale(666).SerializeToString())

    with pytest.raises(ModelFailed, match="digest"):
        await make_engine().predict(M, rows(1))


async def test_a_program_that_is_gone_is_named(
    make_engine: MakeEngine, publish: Publish, store: LocalBlobStore
) -> None:
    version = await publish(scale(2))
    await store.delete(version.artifacts[0].key)

    with pytest.raises(ModelFailed, match="missing from the store"):
        await make_engine().predict(M, rows(1))


async def test_a_version_without_a_program_cannot_run(make_engine: MakeEngine, registry: Registry) -> None:
    spec = TensorSpec(name="x", data_type=DataType.FP32, shape=(-1, 2))
    weights = Artifact(path="w", format=ArtifactFormat.SAFETENSORS, digest="sha256:0", size_bytes=1, key="w")
    new = NewVersion(model="m", signature=Signature(inputs=(spec,), outputs=(spec,)), artifacts=(weights,))
    await registry.register(new, origin="", origin_digest="")

    with pytest.raises(Unsupported, match="SAFETENSORS"):
        await make_engine().predict(M, rows(1))


async def test_listeners_hear_when_a_model_becomes_ready_and_when_it_no_longer_is(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend
) -> None:
    await publish(scale(1))
    await publish(scale(2))
    engine = make_engine([backend])
    heard: list[tuple[str, bool]] = []
    engine.watch(lambda name, is_ready: heard.append((name, is_ready)))

    await engine.load(ModelName("m", 1))
    await engine.load(ModelName("m", 2))
    await engine.unload(ModelName("m", 1))
    assert heard == [("models/m", True)]
    await engine.unload(ModelName("m", 2))

    assert heard == [("models/m", True), ("models/m", False)]
