"""The predict path as its callers see it."""

import asyncio
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from headrace_server.errors import (
    InvalidTensor,
    ModelFailed,
    ModelNotFound,
)
from headrace_server.models.registry import Registry
from headrace_server.names import ModelName
from headrace_server.precision import Precision
from headrace_server.telemetry.metrics import Metrics
from headrace_server.tensors import Array, DataType, Signature, TensorSpec
from tests.doubles.onnx_models import identity, lookup, scale, total
from tests.inference.conftest import MakeEngine, Publish

M = ModelName("m")


def rows(*values: float) -> dict[str, Array]:
    return {"x": np.array([[value, -value] for value in values], np.float32)}


def value_of(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0


async def test_a_prediction_says_what_ran_and_where_the_time_went(make_engine: MakeEngine, publish: Publish) -> None:
    version = await publish(scale(2))

    asked_at = time.monotonic()
    prediction = await make_engine().predict(M, rows(1, 2))
    seconds = time.monotonic() - asked_at

    assert prediction.outputs["y"].tolist() == [[2, -2], [4, -4]]
    assert prediction.version == version
    assert prediction.provenance.artifact_digest == version.artifacts[0].digest
    assert (prediction.provenance.backend, prediction.provenance.device) == ("onnxruntime", "cpu")
    assert prediction.provenance.precision is Precision.FP32
    timing = prediction.timing
    assert (timing.batch_rows, timing.batch_calls) == (2, 1)
    parts = (timing.queue_seconds, timing.assemble_seconds, timing.compute_seconds, timing.respond_seconds)
    assert min(parts) >= 0
    assert sum(parts) <= seconds


async def test_many_callers_get_their_own_rows(make_engine: MakeEngine, publish: Publish) -> None:
    await publish(scale(2))
    engine = make_engine(max_batch_rows=16, lanes_per_model=2, max_delay_seconds=1)

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
