"""Versions to plan: small programs in both forms, and what 16 bits do to them."""

from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from headrace_server.models.version import ArtifactFormat
from headrace_server.tensors import DataType, Signature, TensorSpec
from tests.doubles.onnx_models import mlp
from tests.doubles.torch_programs import save

BATCH = torch.export.Dim("batch", min=1, max=65_536)


class Overflowing(nn.Module):
    """Sums of squares above 65,504, the largest number of FP16, in a normalisation written by hand; small answers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        wide = x * 300
        scaled: Tensor = self.layer(wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6))
        return scaled


class Exploding(nn.Module):
    """A value of a million between two layers: FP16 has no such number, and no normalisation is to blame."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh((x * 1e6 + 1) * 1e-6)


def signature(inputs: int, outputs: int, name: str = "output") -> Signature:
    x = TensorSpec(name="x", data_type=DataType.FP32, shape=(-1, inputs))
    return Signature(inputs=(x,), outputs=(TensorSpec(name=name, data_type=DataType.FP32, shape=(-1, outputs)),))


def torch_sources(
    module: nn.Module, folder: Path, width: int = 4, most_rows: int = 65_536
) -> dict[ArtifactFormat, Path]:
    torch.manual_seed(0)
    batch = torch.export.Dim("batch", min=1, max=most_rows)
    path = save(module, (torch.randn(2, width),), folder, dynamic_shapes=({0: batch},))
    return {ArtifactFormat.TORCH_EXPORT: path}


def onnx_sources(folder: Path, sizes: tuple[int, ...] = (16, 32, 4)) -> dict[ArtifactFormat, Path]:
    path = folder / "model.onnx"
    onnx.save(mlp(sizes), path)
    return {ArtifactFormat.ONNX: path}
