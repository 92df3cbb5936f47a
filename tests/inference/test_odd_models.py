"""Models and questions that are unusual, and a store that goes away."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from headrace_server.errors import InvalidTensor, ModelFailed
from headrace_server.inference.engine import Readiness
from headrace_server.inference.plans.measurement import Trial
from headrace_server.inference.plans.plan import Plan, Runtime
from headrace_server.models.calibration import draw_rows
from headrace_server.models.version import ArtifactFormat
from headrace_server.names import ModelName
from headrace_server.precision import Precision
from headrace_server.storage.local import LocalBlobStore
from headrace_server.tensors import Array
from tests.doubles.onnx_models import identity, lookup, scale
from tests.inference.conftest import MakeEngine, Publish
from tests.inference.plans.test_trying import bench, tried

M = ModelName("m")
ONNX_FP32 = Plan(runtime=Runtime.ONNXRUNTIME, precision=Precision.FP32)


async def test_a_batch_without_rows_is_refused_and_the_next_one_answered(
    make_engine: MakeEngine, publish: Publish
) -> None:
    await publish(scale(2))
    engine = make_engine()

    with pytest.raises(InvalidTensor, match="there is nothing to compute"):
        await engine.predict(M, {"x": np.zeros((0, 2), np.float32)})

    answer = await engine.predict(M, {"x": np.ones((1, 2), np.float32)})
    assert answer.outputs["y"].tolist() == [[2, 2]]


@pytest.mark.parametrize("shape", [(2, "n"), ("rows", 2, "n"), ("rows", "n", "m"), (3,), ()])
async def test_axes_that_are_free_anywhere_are_served_and_planned(
    make_engine: MakeEngine, publish: Publish, tmp_path: Path, shape: tuple[int | str, ...]
) -> None:
    program = identity(TensorProto.FLOAT, shape)
    version = await publish(program)
    onnx.save(program, tmp_path / "planned.onnx")

    for length in (1, 5):
        x: Array = np.full([length if isinstance(axis, str) else axis for axis in shape], 7, np.float32)
        assert np.array_equal((await make_engine().predict(M, {"x": x})).outputs["y"], x)

    (trial,) = tried(bench({ArtifactFormat.ONNX: tmp_path / "planned.onnx"}, version.signature, tmp_path), ONNX_FP32)
    assert not trial.problem
    assert trial.worst_difference().max_absolute == 0


@pytest.mark.parametrize("element", [TensorProto.INT64, TensorProto.INT8, TensorProto.BOOL, TensorProto.STRING])
async def test_inputs_that_are_no_floats_are_planned_and_their_answers_compared(
    publish: Publish, tmp_path: Path, element: int
) -> None:
    version = await publish(identity(element, ("rows", 2)))
    onnx.save(identity(element, ("rows", 2)), tmp_path / "planned.onnx")

    (trial,) = tried(bench({ArtifactFormat.ONNX: tmp_path / "planned.onnx"}, version.signature, tmp_path), ONNX_FP32)

    assert not trial.problem
    assert trial.worst_difference().agreement in (1, None)


async def test_rows_that_the_program_fails_on_are_a_problem_of_the_plan_and_not_of_the_server(
    publish: Publish, tmp_path: Path
) -> None:
    program = lookup(length=1)  # drawn indices are 0 and 1, and only 0 is there
    version = await publish(program)
    onnx.save(program, tmp_path / "planned.onnx")

    (trial,) = tried(bench({ArtifactFormat.ONNX: tmp_path / "planned.onnx"}, version.signature, tmp_path), ONNX_FP32)

    assert isinstance(trial, Trial)
    assert "out of data bounds" in trial.problem
    assert draw_rows(version.signature).num_rows > 0


async def test_a_store_that_goes_away_while_a_new_version_is_loaded_leaves_the_old_one_answering(
    make_engine: MakeEngine, publish: Publish, store: LocalBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await publish(scale(2))
    engine = make_engine()
    await engine.load(old.name)
    new = await publish(scale(3))

    async def refuse(*_: object) -> None:
        raise OSError(5, "the store is away")

    with monkeypatch.context() as away:
        away.setattr(store, "local_path", refuse)
        away.setattr(store, "fetch", refuse)
        with pytest.raises(ModelFailed, match="the store is away"):
            await engine.load(new.name)
        answer = await engine.predict(old.name, {"x": np.ones((1, 2), np.float32)})

    assert answer.outputs["y"].tolist() == [[2, 2]]
    assert engine.look(new).readiness is Readiness.FAILED
    await engine.load(new.name)
    assert (await engine.predict(new.name, {"x": np.ones((1, 2), np.float32)})).outputs["y"].tolist() == [[3, 3]]
