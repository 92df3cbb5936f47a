"""The predict path as its callers see it."""

import asyncio
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from headrace_server.errors import (
    DeviceOutOfMemory,
    Draining,
    ExpiredInQueue,
    HeadraceError,
    InvalidSpec,
    InvalidTensor,
    ModelFailed,
    ModelLoading,
    ModelNotFound,
    ModelNotLoaded,
    NoPermit,
    Unsupported,
)
from headrace_server.inference import resident
from headrace_server.inference.backends.backend import DeviceBroken
from headrace_server.inference.engine import Readiness
from headrace_server.models.registry import Registry
from headrace_server.models.version import Artifact, ArtifactFormat, NewVersion
from headrace_server.names import ModelName
from headrace_server.precision import Precision
from headrace_server.storage.local import LocalBlobStore
from headrace_server.telemetry.metrics import Metrics
from headrace_server.tensors import Array, DataType, Signature, Tensors, TensorSpec
from tests.doubles.onnx_models import identity, lookup, scale, total
from tests.doubles.scripted_backend import ScriptedBackend
from tests.doubles.until import until
from tests.inference.conftest import MakeEngine, Publish

M = ModelName("m")


def rows(*values: float) -> dict[str, Array]:
    return {"x": np.array([[value, -value] for value in values], np.float32)}


def value_of(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0


@pytest.fixture
def backend() -> Iterator[ScriptedBackend]:
    backend = ScriptedBackend()
    yield backend
    backend.may_open.set()


class Gate:
    """A model that computes when it is allowed to, after it is warm."""

    def __init__(self) -> None:
        self.runs = 0
        self.is_open = threading.Event()
        self.warm_ups = 2

    def __call__(self, inputs: Tensors) -> Tensors:
        if self.warm_ups:
            self.warm_ups -= 1
        else:
            self.runs += 1
            assert self.is_open.wait(30)
        return {"y": inputs["x"] * 2}


# With ONNX Runtime.


async def test_a_prediction_says_what_ran_and_where_the_time_went(make_engine: MakeEngine, publish: Publish) -> None:
    version = await publish(scale(2))

    prediction = await make_engine().predict(M, rows(1, 2))

    assert prediction.outputs["y"].tolist() == [[2, -2], [4, -4]]
    assert prediction.version == version
    assert prediction.provenance.artifact_digest == version.artifacts[0].digest
    assert (prediction.provenance.backend, prediction.provenance.device) == ("onnxruntime", "cpu")
    assert prediction.provenance.precision is Precision.FP32
    timing = prediction.timing
    assert (timing.batch_rows, timing.batch_calls) == (2, 1)
    assert min(timing.queue_seconds, timing.compute_seconds, timing.respond_seconds, timing.assemble_seconds) >= 0
    assert timing.compute_seconds < 1


async def test_many_callers_get_their_own_rows(make_engine: MakeEngine, publish: Publish) -> None:
    await publish(scale(2))
    engine = make_engine(max_batch_rows=16, lanes_per_model=2)

    predictions = await asyncio.gather(*(engine.predict(M, rows(*[float(n)] * (1 + n % 40))) for n in range(300)))

    for n, prediction in enumerate(predictions):
        assert prediction.outputs["y"].tolist() == [[2 * n, -2 * n]] * (1 + n % 40)
    assert max(prediction.timing.batch_calls for prediction in predictions) > 1
    assert max(prediction.timing.batch_rows for prediction in predictions) <= 16


async def test_only_the_call_that_makes_the_model_fail_fails(
    make_engine: MakeEngine, publish: Publish, metrics: Metrics
) -> None:
    await publish(lookup(4))
    engine = make_engine()

    results = await asyncio.gather(
        *(engine.predict(M, {"x": np.array([index], np.int64)}) for index in (0, 1, 99, 3)), return_exceptions=True
    )

    assert isinstance(results[2], ModelFailed)
    assert [float(r.outputs["y"][0]) for r in results if not isinstance(r, BaseException)] == [0, 10, 30]
    assert value_of(metrics, "headrace_predictions_total", model="m", version="1", outcome="ok") == 3
    assert value_of(metrics, "headrace_predictions_total", model="m", version="1", outcome="MODEL_FAILED") == 1


async def test_a_model_whose_rows_depend_on_each_other_runs_its_calls_alone(
    make_engine: MakeEngine, publish: Publish
) -> None:
    """It claims a free first axis everywhere; the warm-up sees through it."""
    await publish(total())
    engine = make_engine()

    predictions = await asyncio.gather(*(engine.predict(M, rows(*[float(n)] * 100)) for n in range(5)))

    assert [prediction.outputs["y"].tolist() for prediction in predictions] == [[[100 * n, -100 * n]] for n in range(5)]
    assert {prediction.timing.batch_calls for prediction in predictions} == {1}


async def test_text_goes_in_and_out(make_engine: MakeEngine, publish: Publish) -> None:
    await publish(identity(TensorProto.STRING, ("batch",)))
    engine = make_engine()

    predictions = await asyncio.gather(*(engine.predict(M, {"x": np.array([f"é{n}"], object)}) for n in range(5)))

    assert [prediction.outputs["y"].tolist() for prediction in predictions] == [[f"é{n}"] for n in range(5)]


@pytest.mark.parametrize(
    ("element_type", "data_type"),
    [(TensorProto.BFLOAT16, DataType.BF16), (TensorProto.FLOAT8E4M3FN, DataType.FP8_E4M3)],
)
async def test_types_that_numpy_does_not_have_keep_their_bits(
    make_engine: MakeEngine, publish: Publish, element_type: int, data_type: DataType
) -> None:
    await publish(identity(element_type))
    given = np.array([[1.5, -2.0]]).astype(data_type.dtype)

    prediction = await make_engine().predict(M, {"x": given})

    assert prediction.outputs["y"].dtype == data_type.dtype
    assert np.array_equal(prediction.outputs["y"], given)


async def test_weights_in_a_second_file_are_found_when_it_runs(
    make_engine: MakeEngine, registry: Registry, tmp_path: Path
) -> None:
    path = tmp_path / "large.onnx"
    onnx.save(scale(5), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    await registry.serve_path("m", path)
    path.unlink()
    (tmp_path / "weights.bin").unlink()
    engine = make_engine()

    assert (await engine.predict(M, rows(1))).outputs["y"].tolist() == [[5, -5]]
    await engine.unload(M)

    assert not list((tmp_path / "scratch" / "programs").iterdir())


async def test_names_mean_what_the_registry_says_at_the_moment_of_the_call(
    make_engine: MakeEngine, publish: Publish, registry: Registry
) -> None:
    for factor in (1, 2, 3):
        await publish(scale(factor))
    engine = make_engine()

    async def factor_of(name: ModelName) -> float:
        return float((await engine.predict(name, rows(1))).outputs["y"][0, 0])

    assert await factor_of(M) == 3
    await registry.assign_alias("m", "default", 1)
    assert await factor_of(M) == 1
    await registry.assign_alias("m", "champion", 2)
    assert await factor_of(ModelName("m", alias="champion")) == 2
    assert await factor_of(ModelName("m", 3)) == 3
    with pytest.raises(ModelNotFound):
        await factor_of(ModelName("other"))


async def test_every_fault_of_the_inputs_is_named_at_once(make_engine: MakeEngine, publish: Publish) -> None:
    await publish(scale())

    with pytest.raises(InvalidTensor) as caught:
        await make_engine().predict(M, {"x": np.zeros((1, 3), np.float32), "z": np.zeros(1)}, output_names=["q"])

    assert {violation.field for violation in caught.value.violations} == {"inputs", "output_names", "inputs['x'].shape"}


@pytest.mark.parametrize("num_rows", [1, 100_000])
async def test_nan_is_refused_only_where_the_model_says_so(
    make_engine: MakeEngine, registry: Registry, tmp_path: Path, num_rows: int
) -> None:
    folder = tmp_path / "careful"
    folder.mkdir()
    onnx.save(scale(), folder / "model.onnx")
    spec = TensorSpec(name="x", data_type=DataType.FP32, shape=(-1, 2), finite_only=True)
    signature = Signature(inputs=(spec,), outputs=(spec.model_copy(update={"name": "y", "finite_only": False}),))
    (folder / "signature.json").write_text(signature.model_dump_json())
    await registry.serve_path("careful", folder)
    await registry.serve_path("m", folder / "model.onnx")
    engine = make_engine(max_waiting_rows=1 << 20)
    inputs = {"x": np.full((num_rows, 2), np.nan, np.float32)}

    with pytest.raises(InvalidTensor, match="NaN"):
        await engine.predict(ModelName("careful"), inputs)
    assert np.isnan((await engine.predict(M, inputs)).outputs["y"]).all()


async def test_asked_outputs_alone_come_back(make_engine: MakeEngine, publish: Publish) -> None:
    await publish(scale())
    engine = make_engine()

    assert list((await engine.predict(M, rows(1), output_names=["y"])).outputs) == ["y"]


# Loading.


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

    await until(lambda: backend.num_open == 0 and not _lane_threads())


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


# Pressure.


async def test_a_caller_who_leaves_frees_his_place_and_disturbs_nobody(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend, metrics: Metrics
) -> None:
    await publish(scale())
    backend.act = gate = Gate()
    engine = make_engine([backend])
    running = asyncio.create_task(engine.predict(M, rows(0)))
    await until(lambda: gate.runs == 1)
    waiting = [asyncio.create_task(engine.predict(M, rows(n))) for n in range(1, 6)]
    await asyncio.sleep(0)

    waiting[2].cancel()
    await asyncio.wait([waiting[2]])
    gate.is_open.set()
    answers = await asyncio.gather(running, *waiting, return_exceptions=True)

    assert [None if isinstance(a, BaseException) else a.outputs["y"].tolist() for a in answers] == [
        [[0, 0]],
        [[2, -2]],
        [[4, -4]],
        None,
        [[8, -8]],
        [[10, -10]],
    ]
    assert value_of(metrics, "headrace_shed_total", model="m", version="1", reason="left") == 1
    assert gate.runs == 2


async def test_too_much_waiting_is_refused_and_expired_calls_are_not_run(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend, metrics: Metrics
) -> None:
    await publish(scale())
    backend.act = gate = Gate()
    engine = make_engine([backend], max_waiting_rows=2)
    running = asyncio.create_task(engine.predict(M, rows(0)))
    await until(lambda: gate.runs == 1)
    late = asyncio.create_task(engine.predict(M, rows(1), deadline=time.monotonic() + 0.05))
    patient = asyncio.create_task(engine.predict(M, rows(2)))
    await asyncio.sleep(0)

    with pytest.raises(NoPermit):
        await engine.predict(M, rows(3))
    assert value_of(metrics, "headrace_waiting_rows", model="m", version="1") == 2
    with pytest.raises(ExpiredInQueue):  # although the lane is busy
        await late
    gate.is_open.set()

    assert (await running).timing.batch_calls == (await patient).timing.batch_calls == 1
    for reason, count in (("no_permit", 1), ("expired", 1), ("left", 0)):
        assert value_of(metrics, "headrace_shed_total", model="m", version="1", reason=reason) == count


async def test_a_lane_that_dies_answers_its_callers_and_the_next_call_finds_a_new_one(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend
) -> None:
    await publish(scale())
    engine = make_engine([backend])
    await engine.load(M)

    def die(inputs: Tensors) -> Tensors:
        raise KeyboardInterrupt  # not an Exception: nothing that a model may raise

    backend.act = die
    with pytest.raises(RuntimeError, match="a lane died of KeyboardInterrupt"):
        async with asyncio.timeout(10):
            await engine.predict(M, rows(1))
    backend.act = None
    await until(lambda: backend.num_open == 0)

    assert (await engine.predict(M, rows(1))).outputs["y"].tolist() == [[1, -1]]
    assert backend.num_opened == 2


# The end.


async def test_draining_refuses_what_is_new_and_finishes_what_was_admitted(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend
) -> None:
    await publish(scale())
    backend.act = gate = Gate()
    engine = make_engine([backend], max_delay_seconds=5)
    running = asyncio.create_task(engine.predict(M, rows(1)))
    await asyncio.wait([running], timeout=0.1)

    draining = asyncio.create_task(engine.drain())
    await until(lambda: gate.runs == 1)
    assert not draining.done()
    with pytest.raises(Draining):
        await engine.predict(M, rows(2))
    with pytest.raises(Draining):
        await engine.load(M)
    gate.is_open.set()

    await asyncio.wait_for(draining, 10)
    assert (await running).outputs["y"].tolist() == [[2, -2]]


async def test_draining_finishes_a_call_that_still_waits_for_its_model(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend
) -> None:
    await publish(scale())
    engine = make_engine([backend])
    backend.may_open.clear()
    call = asyncio.create_task(engine.predict(M, rows(1)))
    await until(lambda: backend.num_opened == 1)

    draining = asyncio.create_task(engine.drain())
    await asyncio.sleep(0)
    backend.may_open.set()

    assert (await call).outputs["y"].tolist() == [[1, -1]]
    await asyncio.wait_for(draining, 10)


async def test_closing_answers_everybody_and_ends_every_thread(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "JOIN_SECONDS", 0.1)
    for model in ("m", "loading"):
        await publish(scale(), model)
    backend.act = gate = Gate()
    engine = make_engine([backend])
    stuck = asyncio.create_task(engine.predict(M, rows(0)))
    await until(lambda: gate.runs == 1)
    waiting = asyncio.create_task(engine.predict(M, rows(1)))
    backend.may_open.clear()
    loading = asyncio.create_task(engine.predict(ModelName("loading"), rows(1)))
    await until(lambda: backend.num_opened == 2)

    await asyncio.wait_for(engine.close(), 10)
    results = await asyncio.wait_for(asyncio.gather(stuck, waiting, loading, return_exceptions=True), 10)

    assert all(isinstance(result, HeadraceError) for result in results), results
    assert [type(result) for result in results] == [Draining, Draining, ModelLoading]
    gate.is_open.set()
    backend.may_open.set()
    await until(lambda: not _lane_threads())
    assert backend.num_open == 0


def _lane_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lane-")]


async def test_a_broken_device_ends_the_lane_and_is_told_of_once(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend
) -> None:
    await publish(scale())
    engine = make_engine([backend])
    broken: list[str] = []
    engine.when_device_breaks(broken.append)
    await engine.predict(M, rows(1))

    def fail(_: Tensors) -> Tensors:
        raise DeviceBroken("cuda:0", "an illegal memory access was encountered")

    backend.act = fail

    results = await asyncio.gather(*(engine.predict(M, rows(n)) for n in range(3)), return_exceptions=True)
    await until(lambda: bool(broken))

    assert all(isinstance(result, Exception) for result in results)
    assert broken == ["cuda:0"]
