"""Finds out how long a step takes, by watching some after a warm-up, so that a decision can follow from it."""

import time

import torch

_WARM_UP, _WATCHED = 10, 30


class Pace:
    """The pace of one way of computing steps.  Waits for the device at both ends of what it watches."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._num_seen = 0
        self._begun_at = 0.0

    def before_step(self) -> float | None:
        """The mean seconds of a step, before the first step for which that is known; None before all others."""
        self._num_seen += 1
        if self._num_seen not in (_WARM_UP, _WATCHED):
            return None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        if self._num_seen == _WARM_UP:
            self._begun_at = time.perf_counter()
            return None
        return (time.perf_counter() - self._begun_at) / (_WATCHED - _WARM_UP)
