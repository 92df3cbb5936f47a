"""Hands the loop its batches: where rows lie, and in which order they come.

The order of an epoch is a function of the seed and the number of the epoch, so that a training that is resumed finds
its place at once, however far it had come.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from headrace_server.trainers.micro_batches import rows_of_rank
from headrace_server.trainers.prefetch import Prefetch, Spot
from headrace_server.trainers.randomness import Use, derive_seed
from headrace_server.trainers.ranks import ALONE, Place
from headrace_server.trainers.task import Rows

_SHARE_OF_FREE_MEMORY = 0.5
_EVALUATION_ELEMENTS = 1 << 22
_WHOLE = slice(None)


class Feed:
    """All rows of a kind, in the device's memory when they fill less than half of what is free, else where they are.

    Batches of rows in the host's memory are fetched ahead, if that is another than the device's, and those of rows in a
    file always.  `rank` is whose part of each batch is handed out.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        device: torch.device,
        rank: Place = ALONE.place,
        *,
        fetches_ahead: bool | None = None,
    ) -> None:
        self._device, self._rank = device, rank
        self._rows = _placed(rows, device)
        self._home = self._rows.targets.device
        self._batch_size = batch_size
        self._order_of = lru_cache(maxsize=2)(self._make_order)  # two, because the next epoch is fetched ahead too
        self.num_rows = len(rows)
        self.num_batches = -(-len(rows) // batch_size)
        self._prefetch: Prefetch | None = None
        if self._home != device or self._rows.is_filed if fetches_ahead is None else fetches_ahead:
            self._prefetch = Prefetch(self._gather, self._following, device)

    def close(self) -> None:
        """Fetch nothing more."""
        if self._prefetch is not None:
            self._prefetch.close()

    def num_rows_of(self, position: int) -> int:
        """How many rows batch `position` holds: the last may hold fewer than the others."""
        return min(self._batch_size, self.num_rows - position * self._batch_size)

    @property
    def fetches_ahead(self) -> bool:
        """Whether batches have to be brought to the device."""
        return self._prefetch is not None

    def training_batch(
        self, seed: int, epoch: int, position: int, gathered: Callable[[], None] = lambda: None
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Inputs and targets of this rank's part of batch `position` of an epoch, both counted from 0.

        Where batches have to be brought to the device, `gathered` is called when this one is on its way.
        """
        spot = Spot(seed, epoch, position)
        *inputs, targets = self._gather(spot) if self._prefetch is None else self._prefetch.take(spot, gathered)
        return tuple(inputs), targets

    def _gather(self, spot: Spot) -> tuple[Tensor, ...]:
        begin = spot.position * self._batch_size
        part = rows_of_rank(self.num_rows_of(spot.position), self._rank)
        chosen = self._order_of(spot.seed, spot.epoch)[begin + part.start : begin + part.stop]
        return tuple(tensor.index_select(0, chosen) for tensor in (*self._rows.inputs, self._rows.targets))

    def _following(self, spot: Spot) -> Spot:
        is_last = spot.position + 1 == self.num_batches
        return Spot(spot.seed, spot.epoch + is_last, 0 if is_last else spot.position + 1)

    def _make_order(self, seed: int, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(seed, Use.ORDER, epoch))
        return torch.randperm(self.num_rows, generator=generator).to(self._home)

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
