"""What is found out before the first step: how many rows the memory holds at once, and how much arithmetic a row is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from headrace_server.trainers.failures import BatchTooLarge
from headrace_server.trainers.feed import Feed
from headrace_server.trainers.learner import Learner
from headrace_server.trainers.memory import rows_that_fit
from headrace_server.trainers.ranks import World
from headrace_server.trainers.task import Task

_FEW = 4


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What was found out."""

    micro_rows: int
    """How many rows are to be computed at once: as many as are wanted, or fewer where those do not fit."""
    row_seconds: float | None
    """How long a row would take at the peak of the device; None where that is not known."""


def rehearse(
    task: Task, learner: Learner, rows: Feed, device: torch.device, world: World, *, wanted: int, splits: bool
) -> Rehearsal:
    """Try passes over a few rows, or over many; changes nothing that decides the training.

    Raises BatchTooLarge where the memory does not hold `wanted` rows, or not even one if it `splits` them.
    """

    def forward(count: int) -> Tensor:
        inputs, targets = next(rows.in_order(slice(0, count), count))
        return learner.rehearse(inputs, lambda outputs: task.loss(outputs, targets))

    at_once = min(wanted, rows.num_rows)
    fits = rows_that_fit(forward, learner.network, device, at_once)
    fits = -int(world.largest(torch.tensor(-fits, device=device)))  # the least of all ranks
    if fits < at_once and not (splits and fits):
        raise BatchTooLarge(str(device), at_once, fits)
    few = min(fits, _FEW)
    return Rehearsal(wanted if fits == at_once else fits, learner.seconds_of_row(lambda: forward(few), few))
