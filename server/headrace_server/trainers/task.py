"""What a family gives the loop: rows, a network, a loss, measures, and the program to export.

A family is one function, named by `Family.code`, that the trainer process calls as

    build(parameters, material) -> Task

Reading and splitting the data happens in `build`; `make_network` is called once after it, with torch's global
generator seeded.  The loop owns everything else: devices, precision, order of rows, optimizer, schedule, evaluation,
checkpoints, and resuming.  For that to be exact, a task must be a pure function of its arguments: the same parameters
and material give the same rows in the same order and the same network, and `augment` draws only from its generator.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.tensors import Signature
from headrace_server.trainers.family import Parameters


class Direction(StrEnum):
    """Which way a measure gets better."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows to learn from or to be examined on, whole, in the CPU's memory, or mapped into it from a file."""

    inputs: tuple[Tensor, ...]
    """Tensors that share their first axis; the network is called with one batch of each."""
    targets: Tensor
    """What the network should answer, one a row."""
    is_filed: bool = False
    """Whether inputs are mapped from a file (`row_file.py`): reading them may wait for the disk."""

    def __len__(self) -> int:
        return int(self.targets.shape[0])


@dataclass(frozen=True, slots=True)
class Material:
    """What a task is made from, besides its parameters."""

    path: Path
    format: DatasetFormat
    holdout_fraction: float
    seed: int
    """The recipe's; see `randomness.derive_seed`."""
    warn: Callable[[str, str], None]
    """Tell the caller something that deserves attention: a code in UPPER_SNAKE_CASE, and a sentence."""
    memory_bytes: int | None = None
    """How much of the memory rows may fill; larger ones belong into a file below `scratch`.  None: they always fit."""
    scratch: Path | None = None
    """A folder for such files, which whoever asks for the task removes; there is one if there is a bound."""


@dataclass(frozen=True, slots=True)
class Program:
    """What is exported and served: a network with everything around it that turns raw inputs into answers."""

    module: nn.Module
    """Called with one tensor for each input of the signature, in order; returns a tuple with one for each output.
    All first axes are the rows.  It must survive `torch.export`: no decisions that depend on values."""
    signature: Signature
    inputs: tuple[Tensor, ...]
    """Raw inputs of at least one held-out row, to compare the exported program on."""
    targets: Tensor | None = None
    """What the first output should have been for these rows: the number of the class where it scores classes, else the
    value.  Whoever serves the program judges ways of running it by what they lose against these."""


class Task(ABC):
    """One training of one family, as the loop sees it."""

    training: Rows
    held_out: Rows
    measures: Mapping[str, Direction]
    """What `measure` returns, and which way is better.  The first decides which checkpoint is best by default."""
    is_static: bool = False
    """Whether the network and the loss do the same operations for every batch of the same shape, on tensors alone, so
    that they may be recorded once and then be replayed without Python."""

    @abstractmethod
    def make_network(self) -> nn.Module:
        """A network with its initial weights, on the CPU in float32."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss over a batch: a float32 scalar that gradients flow through.  `outputs` are float32."""

    @abstractmethod
    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """How good these answers are: every one of `measures` as a scalar tensor.

        Called with all held-out rows at once, and with the newest training rows.  Must not wait for the device.
        """

    @abstractmethod
    def program(self, network: nn.Module) -> Program:
        """The program around a trained network.  `network` is on the CPU, in float32, in evaluation mode."""

    def augment(self, inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Change a batch of training inputs at random; as they are by default.

        `inputs` and `generator` are on the training device.  Must not change `inputs` in place.
        """
        return inputs


BuildTask: TypeAlias = Callable[[Parameters, Material], Task]
