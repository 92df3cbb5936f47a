"""Gives way to predictions: between two micro-batches the training waits while models are busy on its device.

A prediction that comes in the middle of a micro-batch waits for it, so micro-batches are kept so short that this is at
most `max_block_seconds`: their rows follow what the last ones took.  However busy the models are, the training keeps
its `min_share` of the time.
"""

import time
from typing import Protocol

import torch

from headrace_server.trainers.recipe import Placement

_WEIGHT = 0.2  # of the newest micro-batch, in the mean of what a row takes
_CALM = 0.8  # the share of the longest block that is aimed at, because some micro-batches take longer than others


class Gate(Protocol):
    """What the engine that serves predictions tells about itself, in memory that both can see."""

    def wait(self, max_seconds: float) -> float:
        """Return as soon as no prediction is waiting or running, or after so long; how long that took.

        Costs next to nothing when there is none, and leaves the interpreter to other threads when there is.
        """
        ...


class Yielding:
    """The manners of one training."""

    def __init__(self, gate: Gate, placement: Placement, device: torch.device, *, adapts: bool) -> None:
        self._gate, self._placement, self._device = gate, placement, device
        self.adapts = adapts
        """Whether the size of micro-batches follows what a prediction may have to wait."""
        self._row_seconds: float | None = None
        self._last_seconds = 0.0
        self._began_at = 0.0

    def rows(self, most: int) -> int:
        """How many rows a micro-batch of the next step should have, at most `most`."""
        if not self.adapts or self._row_seconds is None:
            return most
        return max(1, min(most, int(self._placement.max_block_seconds * _CALM / self._row_seconds)))

    def give_way(self) -> float:
        """Before a micro-batch: wait while models are busy, and return for how long that was, in seconds."""
        share = self._placement.min_share
        seconds = self._gate.wait(self._last_seconds * (1 - share) / share)
        self._began_at = time.perf_counter()
        return seconds

    def done(self, rows: int) -> None:
        """After a micro-batch of so many rows.  Waits for the device, where work would else pile up before others'."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        self._last_seconds = time.perf_counter() - self._began_at
        if rows:
            seconds = self._last_seconds / rows
            known = self._row_seconds
            self._row_seconds = seconds if known is None else known + _WEIGHT * (seconds - known)
