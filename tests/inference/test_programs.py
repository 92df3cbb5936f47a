"""Programs come from the store as they were registered."""

import os
from pathlib import Path

import onnx
import pytest

from headrace_server.errors import ModelFailed
from headrace_server.inference.nicely import NICENESS, run_nicely
from headrace_server.inference.programs import Programs
from headrace_server.models.onnx_signature import dominant_precision
from headrace_server.precision import Precision
from headrace_server.storage.local import LocalBlobStore
from tests.doubles.onnx_models import mlp, scale
from tests.inference.conftest import Publish


async def test_a_program_that_was_compared_once_is_compared_again_when_its_file_was_touched(
    publish: Publish, store: LocalBlobStore, tmp_path: Path
) -> None:
    version = await publish(scale(2))
    (artifact,) = version.artifacts
    programs = Programs(store, tmp_path)
    for _ in range(2):
        assert (await programs.fetch(version, artifact)).digest == artifact.digest

    path = await store.local_path(artifact.key)
    assert path is not None
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)

    with pytest.raises(ModelFailed, match="has the digest"):
        await programs.fetch(version, artifact)


def test_a_file_in_the_place_of_another_has_its_own_precision(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(mlp(), path)
    assert dominant_precision(path) is Precision.FP32

    halves = mlp()
    for tensor in halves.graph.initializer:
        tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, onnx.TensorProto.FLOAT16, [0], []))
    weights = onnx.helper.make_tensor("weights", onnx.TensorProto.FLOAT16, [4], [1.0] * 4)
    halves.graph.initializer.append(weights)
    onnx.save(halves, tmp_path / "other.onnx")
    (tmp_path / "other.onnx").replace(path)

    assert dominant_precision(path) is Precision.FP16


def test_work_that_gives_way_is_nicer_and_leaves_its_caller_as_he_was() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)

    nice = run_nicely(lambda: os.getpriority(os.PRIO_PROCESS, 0))

    assert nice == max(before, NICENESS)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    with pytest.raises(ZeroDivisionError):
        run_nicely(lambda: 1 // 0)
