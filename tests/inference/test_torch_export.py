"""Programs of torch.export, through the engine."""

import asyncio
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from headrace_server.errors import InvalidModel
from headrace_server.inference.backends.torch_export import TorchExportBackend
from headrace_server.models.registry import Registry
from headrace_server.names import ModelName
from headrace_server.precision import Precision
from headrace_server.tensors import Signature
from tests.doubles.torch_programs import Scale, Scores, save
from tests.inference.conftest import MakeEngine

M = ModelName("m")


async def test_a_torch_program_answers_as_the_module_does(
    make_engine: MakeEngine, registry: Registry, tmp_path: Path
) -> None:
    module = Scores()
    batch, time = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("time", min=1, max=64)
    example = (torch.zeros(2, 4), torch.ones(2, 7, dtype=torch.bool))
    await registry.serve_path("m", save(module, example, tmp_path, None, ({0: batch}, {0: batch, 1: time})))
    engine = make_engine(max_batch_rows=12, max_delay_seconds=10)
    rng = np.random.default_rng(0)
    inputs = [
        {"x": rng.normal(size=(n, 4)).astype(np.float32), "mask": rng.random((n, 3)) > 0.5} for n in (1, 2, 5, 1, 3)
    ]

    predictions = await asyncio.gather(*(engine.predict(M, given) for given in inputs))

    for given, prediction in zip(inputs, predictions, strict=True):
        wanted = module(torch.from_numpy(given["x"]), torch.from_numpy(given["mask"]))
        scores = np.asarray(prediction.outputs["scores"], np.float32)
        np.testing.assert_allclose(scores, wanted["scores"].detach().numpy(), rtol=1e-5, atol=1e-6)
        assert prediction.outputs["best"].tolist() == wanted["best"].tolist()
    provenance = predictions[0].provenance
    assert (provenance.backend, provenance.device, provenance.precision) == ("torch", "cpu", Precision.FP32)
    assert {prediction.timing.batch_calls for prediction in predictions} == {5}


async def test_keyword_arguments_and_bfloat16_reach_the_program(
    make_engine: MakeEngine, registry: Registry, tmp_path: Path
) -> None:
    example = torch.zeros(2, 4, dtype=torch.bfloat16)
    await registry.serve_path("m", save(Scale(), (example,), tmp_path, {"factor": torch.zeros(1)}))
    x = np.arange(8).reshape(2, 4).astype(ml_dtypes.bfloat16)
    factor = np.array([3], np.float32)
    factor.flags.writeable = False

    prediction = await make_engine().predict(M, {"x": x, "factor": factor})

    assert prediction.outputs["output_0"].dtype == ml_dtypes.bfloat16
    assert np.array_equal(prediction.outputs["output_0"], x * ml_dtypes.bfloat16(3))
    assert prediction.outputs["output_1"].tolist() == [3]


def test_a_program_with_other_inputs_than_its_version_says_is_not_opened(tmp_path: Path) -> None:
    path = save(Scale(), (torch.zeros(2, 4),), tmp_path, {"factor": torch.zeros(1)})

    with pytest.raises(InvalidModel, match="has 2 inputs"):
        TorchExportBackend(1).open(path, Signature(inputs=(), outputs=()))
