"""Exported programs must answer as the network did, whatever its inputs are called."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.models.calibration import CALIBRATION_FILE, read_rows
from headrace_server.models.version import ArtifactFormat
from headrace_server.tensors import DataType, Signature, TensorSpec
from headrace_server.trainers.evaluations import Best
from headrace_server.trainers.export import MANIFEST, ONNX, PT2, WEIGHTS, Export, compare
from headrace_server.trainers.failures import ExportDiffers
from headrace_server.trainers.job_file import ExportManifest
from headrace_server.trainers.tabular.network import Scale, TabularNetwork, TabularProgram
from headrace_server.trainers.tabular.parameters import TabularParameters
from headrace_server.trainers.tabular.task import build as build_tabular
from headrace_server.trainers.task import Material, Program
from tests.doubles.tiny_task import TinyTask

NAMES = ("linear", "a column/with ümlauts, and so on", "_0", "cat")
"""What torch calls values in the middle of a graph, what no identifier may hold, and what we call values ourselves."""


def awkward_program() -> tuple[nn.Module, Program]:
    network = TabularNetwork(3, [4], [8], dropout=0.1, num_outputs=2).eval()
    scale = Scale.of(torch.randn(10, 3))
    specs = [TensorSpec(name=name, data_type=DataType.FP32, shape=(-1,)) for name in NAMES[:3]]
    specs.append(TensorSpec(name=NAMES[3], data_type=DataType.INT64, shape=(-1,)))
    outputs = (
        TensorSpec(name="scores", data_type=DataType.FP32, shape=(-1, 2)),
        TensorSpec(name="label", data_type=DataType.INT64, shape=(-1,)),
    )
    inputs = (*(torch.randn(5) for _ in range(3)), torch.tensor([0, 3, 7, -1, 2]))
    module = TabularProgram(network, (True, True, True, False), scale, None).eval()
    return network, Program(module, Signature(inputs=tuple(specs), outputs=outputs), inputs)


def test_exported_programs_answer_as_the_network_for_any_names_and_number_of_rows(tmp_path: Path) -> None:
    network, program = awkward_program()
    warnings: list[tuple[str, str]] = []

    export = Export(tmp_path, program, lambda *warning: warnings.append(warning))
    export.write(network)
    parity = export.verify()
    export.describe(Best(12, {"accuracy": 0.5}, {}), parity, "1.2.3", {"python": "3"})

    assert warnings == []
    manifest = ExportManifest.model_validate_json((tmp_path / MANIFEST).read_bytes())
    assert {artifact.path: artifact.format for artifact in manifest.artifacts} == {
        ONNX: ArtifactFormat.ONNX,
        PT2: ArtifactFormat.TORCH_EXPORT,
        WEIGHTS: ArtifactFormat.SAFETENSORS,
        CALIBRATION_FILE: ArtifactFormat.CALIBRATION,
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([ONNX, PT2, WEIGHTS, MANIFEST, CALIBRATION_FILE])
    kept = read_rows(tmp_path / CALIBRATION_FILE, program.signature)
    assert kept.num_rows == 5
    with torch.no_grad():
        assert np.array_equal(kept.outputs["scores"], program.module(*program.inputs)[0].numpy())
    assert manifest.lineage.step == 12
    assert manifest.lineage.parity.keys() == {ONNX, PT2}
    assert all(facts.num_rows == 5 and facts.max_abs_difference < 1e-5 for facts in parity.values())
    session = onnxruntime.InferenceSession(tmp_path / ONNX, providers=["CPUExecutionProvider"])
    assert tuple(value.name for value in session.get_inputs()) == NAMES
    assert [value.name for value in session.get_outputs()] == ["scores", "label"]
    loaded = torch.export.load(tmp_path / PT2).module()
    for rows in (1, 3, 17):
        inputs = (*(torch.randn(rows) for _ in range(3)), torch.randint(-2, 6, (rows,)))
        with torch.no_grad():
            scores, label = program.module(*inputs)
            from_torch = loaded(*inputs)
        feed = {name: tensor.numpy() for name, tensor in zip(NAMES, inputs, strict=True)}
        from_onnx = session.run(None, feed)
        np.testing.assert_allclose(from_onnx[0], scores.numpy(), atol=1e-5)
        np.testing.assert_array_equal(from_onnx[1], label.numpy())
        torch.testing.assert_close(from_torch[0], scores)


def test_a_program_of_one_held_out_row_can_be_exported(tmp_path: Path) -> None:
    task = TinyTask(num_held_out=1)
    network = task.make_network().eval()

    export = Export(tmp_path, task.program(network), lambda *_: None)
    export.write(network)

    assert export.verify()[ONNX].num_rows == 1
    session = onnxruntime.InferenceSession(tmp_path / ONNX, providers=["CPUExecutionProvider"])
    assert session.run(None, {"rows": np.zeros((6, 4), np.float32)})[0].shape == (6, 2)


def scripted(answer: float) -> Program:
    class Constant(nn.Module):
        def forward(self, rows: Tensor) -> tuple[Tensor]:
            return (torch.full((len(rows),), answer),)

    spec = TensorSpec(name="value", data_type=DataType.FP32, shape=(-1,))
    return Program(Constant(), Signature(inputs=(spec,), outputs=(spec,)), (torch.zeros(3),))


@pytest.mark.parametrize("answer", [1.001, float("nan"), float("inf")])
def test_a_program_that_answers_otherwise_fails(answer: float) -> None:
    with pytest.raises(ExportDiffers, match=r"model\.onnx differs from the trained network by .* in 'value'"):
        compare("model.onnx", scripted(1.0), lambda inputs: [np.full(len(inputs[0]), answer, np.float32)])


def test_large_answers_may_differ_in_proportion() -> None:
    parity = compare("model.onnx", scripted(1e6), lambda inputs: [np.full(len(inputs[0]), 1e6 + 50, np.float32)])

    assert parity.max_abs_difference == 50


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    _, program = awkward_program()

    folder = Export(tmp_path / "export", program, lambda *_: None).describe(Best(1, {}, {}), {}, "", {})

    assert json.loads((folder / MANIFEST).read_text())["signature"]["inputs"][1]["name"] == NAMES[1]


@pytest.mark.parametrize("target", ["kind", "size"])
def test_what_should_have_been_answered_is_stored_in_the_terms_of_the_first_output(tmp_path: Path, target: str) -> None:
    path = tmp_path / "flowers.csv"
    lines = [f"{n % 7}.5,{(n % 2) * 10 + n % 3}.25,{'ab'[n % 2]}" for n in range(60)]
    path.write_text("\n".join(["width,size,kind", *lines]))
    material = Material(
        path=path, format=DatasetFormat.CSV, holdout_fraction=0.25, seed=1, warn=lambda *_: None
    )  # fmt: skip
    task = build_tabular(TabularParameters(target=target), material)
    program = task.program(task.make_network().eval())

    Export(tmp_path / "export", program, lambda *_: None)._write_calibration()

    rows = read_rows(tmp_path / "export" / CALIBRATION_FILE, program.signature)
    (stored,) = rows.targets.values()
    assert len(stored) == rows.num_rows
    sizes = set(range(3)) | {10, 11, 12}
    allowed = {0.0, 1.0} if target == "kind" else {size + 0.25 for size in sizes}
    assert {round(float(value), 3) for value in stored} <= allowed
