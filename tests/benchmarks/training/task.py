"""The shapes of `recipe.py` as our loop sees them, and as a family of trainers that a server can train.

The family is a plug-in: `served.py` installs it beside the server.  Its trainer notes what its own steps took.
"""

import json
from pathlib import Path

import torch
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from headrace_server.datasets.dataset import DatasetFormat, DatasetVersion
from headrace_server.errors import Violation
from headrace_server.tensors import Signature
from headrace_server.trainers.family import Family, Parameters
from headrace_server.trainers.measures import CLASSIFICATION, measure_classes
from headrace_server.trainers.task import Material, Program, Rows, Task
from tests.benchmarks.training.clock import Clock
from tests.benchmarks.training.recipe import SHAPES, Shape


def num_warm_up(num_steps: int) -> int:
    """Steps that are not counted, before those that are."""
    return min(20, num_steps // 5)


class ShapeTask(Task):
    """A shape, as our loop sees it."""

    measures = CLASSIFICATION

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        inputs, targets = shape.rows()
        self.training = Rows((inputs,), targets)
        self.held_out = Rows((inputs[: shape.batch_size],), targets[: shape.batch_size])

    def make_network(self) -> nn.Module:
        """The network."""
        return self._shape.network()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(outputs, targets)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Accuracy and loss."""
        return measure_classes(outputs, targets)

    def program(self, network: nn.Module) -> Program:
        """Nothing is exported here."""
        return Program(network, Signature(inputs=(), outputs=()), self.held_out.inputs)


class ClockedTask(ShapeTask):
    """Writes what a step took, as JSON, when so many steps after the warm-up are done and another begins."""

    def __init__(self, shape: Shape, num_steps: int, path: Path) -> None:
        super().__init__(shape)
        self._first, self._path = num_warm_up(num_steps), path
        self._last = self._first + num_steps
        self._num_begun = 0
        self._begin = Clock.now()

    def augment(self, inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Nothing, but it is called once at the beginning of each step."""
        if self._num_begun == self._first:
            self._begin = Clock.now()
        elif self._num_begun == self._last:
            each = self._begin.each_of(self._last - self._first)
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps({"wall": each.wall, "processor": each.processor}))
            partial.rename(self._path)
        self._num_begun += 1
        return inputs


class ShapeParameters(Parameters):
    """Which shape, over how many steps, and where to write what they took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: str
    num_steps: int
    clock: Path

    def violations(self, dataset: DatasetVersion) -> list[Violation]:
        """None: the rows of a shape are its own, whatever the data set holds."""
        return []


SHAPE = Family(
    name="shape",
    title="A shape of a benchmark",
    parameters=ShapeParameters,
    formats=(DatasetFormat.NPZ,),
    metrics=("accuracy", "loss"),
    code="tests.benchmarks.training.task:build",
)


def build(parameters: Parameters, material: Material) -> Task:
    """The rows of the shape."""
    assert isinstance(parameters, ShapeParameters)
    return ClockedTask(SHAPES[parameters.shape], parameters.num_steps, parameters.clock)
