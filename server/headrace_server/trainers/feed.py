"""Hands the loop its batches: where rows lie, and in which order they come.

The order of an epoch is a function of the seed and the number of the epoch, so that a training that is resumed finds
its place at once, however far it had come.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from headrace_server.trainers.randomness import Use, derive_seed
from headrace_server.trainers.task import Rows

_SHARE_OF_FREE_MEMORY = 0.5
_EVALUATION_ELEMENTS = 1 << 22
_WHOLE = slice(None)


class Feed:
    """All rows of a kind, in the device's memory when they fill less than half of what is free, else in the host's."""

    def __init__(self, rows: Rows, batch_size: int, device: torch.device) -> None:
        self._device = device
        self._rows = _placed(rows, device)
        self._home = self._rows.targets.device
        self._batch_size = batch_size
        self._order_of: tuple[int, int] | None = None
        self._order = torch.empty(0, dtype=torch.int64)
        self.num_rows = len(rows)
        self.num_batches = -(-len(rows) // batch_size)

    def num_rows_of(self, position: int) -> int:
        """How many rows batch `position` holds: the last may hold fewer than the others."""
        return min(self._batch_size, self.num_rows - position * self._batch_size)

    def training_batch(
        self, seed: int, epoch: int, position: int, part: slice = _WHOLE
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Inputs and targets of batch `position` of an epoch, both counted from 0, or of a part of its rows."""
        if self._order_of != (seed, epoch):
            generator = torch.Generator().manual_seed(derive_seed(seed, Use.ORDER, epoch))
            self._order = torch.randperm(self.num_rows, generator=generator).to(self._home)
            self._order_of = (seed, epoch)
        chosen = self._order[position * self._batch_size : (position + 1) * self._batch_size][part]
        inputs = tuple(self._to_device(tensor.index_select(0, chosen)) for tensor in self._rows.inputs)
        return inputs, self._to_device(self._rows.targets.index_select(0, chosen))

    def in_order(self, part: slice = _WHOLE, rows: int | None = None) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """All rows once, or a part of them, as they lie, in batches of `rows`, or such as suit a forward pass alone."""
        if rows is None:
            elements = sum(tensor[:1].numel() for tensor in self._rows.inputs)
            rows = min(8192, max(self._batch_size, _EVALUATION_ELEMENTS // max(1, elements)))
        first, last, _ = part.indices(self.num_rows)
        for begin in range(first, last, rows):
            end = min(begin + rows, last)
            inputs = tuple(self._to_device(tensor[begin:end]) for tensor in self._rows.inputs)
            yield inputs, self._to_device(self._rows.targets[begin:end])

    def _to_device(self, tensor: Tensor) -> Tensor:
        if tensor.device == self._device:
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)


def _placed(rows: Rows, device: torch.device) -> Rows:
    if device.type != "cuda":
        return rows
    needed_bytes = sum(tensor.nbytes for tensor in (*rows.inputs, rows.targets))
    free_bytes, _ = torch.cuda.mem_get_info(device)
    if needed_bytes > free_bytes * _SHARE_OF_FREE_MEMORY:
        return rows
    return Rows(tuple(tensor.to(device) for tensor in rows.inputs), rows.targets.to(device))
