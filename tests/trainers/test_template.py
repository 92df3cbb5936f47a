"""A template must become, with the weights of any checkpoint in it, the program of that checkpoint's network."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.errors import InvalidModel
from headrace_server.models.onnx_weights import put_weights
from headrace_server.trainers.failures import ExportDiffers
from headrace_server.trainers.recipe import Recipe
from headrace_server.trainers.task import Program
from headrace_server.trainers.template import FAILURE, PROGRAM, TEMPLATE, Template, TemplateFailure, TemplateOrder
from headrace_server.trainers.template_process import write_template
from tests.doubles.flowers import flowers
from tests.doubles.tiny_task import TinyTask


class Frozen(nn.Module):
    """Computes with weights as they were when it was made."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.register_buffer("weights", next(network.parameters()).detach().clone())
        self.weights: Tensor

    def forward(self, rows: Tensor) -> tuple[Tensor]:
        return ((rows @ self.weights.T)[:, :2],)


class FrozenTask(TinyTask):
    def program(self, network: nn.Module) -> Program:
        program = super().program(network)
        return Program(Frozen(network), program.signature, program.inputs)


def trained(network: nn.Module) -> nn.Module:
    """The network after a few steps: other weights, and other statistics of its batches."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network.train()
    for _ in range(5):
        optimizer.zero_grad()
        network(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
    return network.eval()


def test_weights_of_a_training_make_the_template_its_network(tmp_path: Path) -> None:
    task = TinyTask()
    write_template(task, 1, tmp_path)
    template = Template.model_validate_json((tmp_path / TEMPLATE).read_bytes())
    network = trained(task.make_network())
    save_file(network.state_dict(), tmp_path / "weights.safetensors")

    put_weights(tmp_path / PROGRAM, template.weights, tmp_path / "weights.safetensors", tmp_path / "result.onnx")

    rows = torch.randn(7, 4)
    session = onnxruntime.InferenceSession(tmp_path / "result.onnx", providers=["CPUExecutionProvider"])
    (scores,) = session.run(["scores"], {"rows": rows.numpy()})
    with torch.no_grad():
        (wanted,) = task.program(network).module(rows)
    np.testing.assert_allclose(scores, wanted.numpy(), rtol=1e-5, atol=1e-6)
    assert template.parity.max_abs_difference < 1e-5


def test_a_program_that_does_not_follow_its_weights_is_no_template(tmp_path: Path) -> None:
    with pytest.raises(ExportDiffers):
        write_template(FrozenTask(), 1, tmp_path)

    assert not (tmp_path / TEMPLATE).exists()


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ({}, "there is no tensor '0.bias'"),
        ({"0.bias": torch.zeros(9)}, r"'0.bias' is F32\[9\], the program has element type 1\[8\]"),
        ({"0.bias": torch.zeros(8, dtype=torch.float64)}, r"'0.bias' is F64\[8\]"),
    ],
)
def test_weights_of_another_network_are_refused_by_name(
    tmp_path: Path, weights: dict[str, Tensor], problem: str
) -> None:
    write_template(TinyTask(), 1, tmp_path)
    names = Template.model_validate_json((tmp_path / TEMPLATE).read_bytes()).weights
    (name,) = (name for name, source in names.items() if source == "0.bias")
    save_file(weights, tmp_path / "weights.safetensors")

    with pytest.raises(InvalidModel, match=problem):
        put_weights(tmp_path / PROGRAM, {name: "0.bias"}, tmp_path / "weights.safetensors", tmp_path / "result.onnx")


def test_weights_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    write_template(TinyTask(), 1, tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"\x80\x04K\x01.")

    with pytest.raises(InvalidModel, match="cannot be read"):
        put_weights(tmp_path / PROGRAM, {}, tmp_path / "weights.safetensors", tmp_path / "result.onnx")


@pytest.mark.parametrize(("target", "code"), [("kind", 0), ("nothing", 3)])
def test_the_process_leaves_a_template_or_says_why_not(tmp_path: Path, target: str, code: int) -> None:
    (tmp_path / "content").write_bytes(flowers())
    order = TemplateOrder(
        trainer="tabular",
        parameters={"target": target, "hidden_widths": [8]},
        recipe=Recipe(seed=1),
        dataset_path=tmp_path / "content",
        dataset_format=DatasetFormat.CSV,
        folder=tmp_path,
    )
    (tmp_path / "order.json").write_text(order.model_dump_json())

    command = [sys.executable, "-P", "-m", "headrace_server.trainers.template_process", str(tmp_path / "order.json")]
    ended = subprocess.run(command, capture_output=True, timeout=280, check=False)

    assert ended.returncode == code, ended.stderr.decode()
    if code == 0:
        template = Template.model_validate_json((tmp_path / TEMPLATE).read_bytes())
        assert [spec.name for spec in template.signature.inputs] == ["length", "width"]
        assert json.loads((tmp_path / TEMPLATE).read_text())["weights"]
    else:
        failure = TemplateFailure.model_validate_json((tmp_path / FAILURE).read_bytes())
        assert "'nothing'" in failure.message
