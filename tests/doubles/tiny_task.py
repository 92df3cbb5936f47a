"""A small task with everything a loop can meet: dropout, batch statistics, augmentation, and a few dozen rows."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from headrace_server.tensors import DataType, Signature, TensorSpec
from headrace_server.trainers.measures import CLASSIFICATION, measure_classes
from headrace_server.trainers.task import Program, Rows, Task


class TinyTask(Task):
    """Two noisy clusters in four dimensions.

    `loss_of` may replace the loss, to script its failures.  A plain one has nothing by which rows that are computed
    apart differ from rows that are computed together: no batch statistics, unless it `normalises`, no dropout, no
    augmentation.  Filed rows are treated as if they had to be read from a file.
    """

    measures = CLASSIFICATION
    is_static = True

    def __init__(
        self,
        num_rows: int = 37,
        num_held_out: int = 11,
        loss_of: Callable[[Tensor, Tensor], Tensor] | None = None,
        is_plain: bool = False,
        normalises: bool = False,
        is_filed: bool = False,
    ) -> None:
        self._is_plain, self._normalises = is_plain, normalises
        self.training = dataclasses.replace(_rows(num_rows, seed=1), is_filed=is_filed)
        self.held_out = _rows(num_held_out, seed=2)
        self._loss_of = loss_of or nn.functional.cross_entropy

    def make_network(self) -> nn.Module:
        if self._normalises:
            # Without a bias, which the normalisation would take away again: its gradient is rounding alone.
            return nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))
        if self._is_plain:
            return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))

    def augment(self, inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        if self._is_plain:
            return inputs
        (rows,) = inputs
        return (rows + 0.1 * torch.randn(rows.shape, generator=generator),)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._loss_of(outputs, targets)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return measure_classes(outputs, targets)

    def program(self, network: nn.Module) -> Program:
        signature = Signature(
            inputs=(TensorSpec(name="rows", data_type=DataType.FP32, shape=(-1, 4)),),
            outputs=(TensorSpec(name="scores", data_type=DataType.FP32, shape=(-1, 2)),),
        )
        return Program(_Softmax(network), signature, self.held_out.inputs)


class _Softmax(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor) -> tuple[Tensor]:
        return (torch.softmax(self.network(rows), dim=1),)


def _rows(num_rows: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 2, (num_rows,), generator=generator)
    inputs = torch.randn((num_rows, 4), generator=generator) + 1.5 * targets[:, None]
    return Rows((inputs,), targets)
