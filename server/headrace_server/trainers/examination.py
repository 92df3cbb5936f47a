"""Examines a network on held-out rows, each rank its part of them, and tells every rank the same result."""

import torch
from torch import nn

from headrace_server.trainers.feed import Feed
from headrace_server.trainers.ranks import World
from headrace_server.trainers.task import Task


def examine(network: nn.Module, task: Task, held_out: Feed, world: World) -> dict[str, float]:
    """The measures of `network`, which is in evaluation mode, over all held-out rows.  Waits for the device.

    Computes in float32, as the exported program will.
    """
    place, num_rows = world.place, held_out.num_rows
    # A sharded network needs all ranks in each of its passes, and their parts may differ in number.
    is_divided = place.size > 1 and not world.shards and num_rows >= place.size
    if place.size > 1:
        world.from_first([buffer for buffer in network.buffers() if buffer.numel()])
    part = place.rows(num_rows) if is_divided else slice(None)
    answers = [(network(*inputs).float(), targets) for inputs, targets in held_out.in_order(part)]
    outputs, targets = torch.cat([a for a, _ in answers]), torch.cat([t for _, t in answers])
    if is_divided:
        outputs, targets = world.join_rows(outputs, num_rows), world.join_rows(targets, num_rows)
    measured = task.measure(outputs, targets)
    values = torch.stack([value.double().reshape(()) for value in measured.values()])
    world.from_first([values])
    return dict(zip(measured, values.tolist(), strict=True))
