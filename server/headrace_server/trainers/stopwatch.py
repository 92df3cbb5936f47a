"""Tells where the time of training steps goes, without making them wait."""

import time
from collections.abc import Mapping
from typing import Protocol

import torch

PARTS = ("data", "forward", "backward", "optimizer")


class Stopwatch(Protocol):
    """Begins with a step, then is told the end of each of its PARTS, in order."""

    def begin(self) -> None:
        """A step begins."""
        ...

    def mark(self, part: int) -> None:
        """Part number `part` has ended."""
        ...

    def read(self) -> Mapping[str, float]:
        """Mean seconds of one step by part since the last reading.  May wait for the device."""
        ...


def make_stopwatch(device: torch.device) -> Stopwatch:
    """A stopwatch that tells the truth about work on this device."""
    return _DeviceStopwatch() if device.type == "cuda" else _HostStopwatch()


class _HostStopwatch:
    """Times every step on the host, where work is done when a call returns."""

    def __init__(self) -> None:
        self._seconds = [0.0] * len(PARTS)
        self._num_steps = 0
        self._last = 0.0

    def begin(self) -> None:
        self._num_steps += 1
        self._last = time.perf_counter()

    def mark(self, part: int) -> None:
        now = time.perf_counter()
        self._seconds[part] += now - self._last
        self._last = now

    def read(self) -> Mapping[str, float]:
        num_steps = max(1, self._num_steps)
        means = {name: seconds / num_steps for name, seconds in zip(PARTS, self._seconds, strict=True)}
        self._seconds, self._num_steps = [0.0] * len(PARTS), 0
        return means


class _DeviceStopwatch:
    """Times one step between readings with events on the device, where calls return before their work is done."""

    def __init__(self) -> None:
        self._events = [
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(len(PARTS) + 1)
        ]
        self._is_sampling = False
        self._is_sampled = False

    def begin(self) -> None:
        self._is_sampling = not self._is_sampled
        if self._is_sampling:
            self._events[0].record()

    def mark(self, part: int) -> None:
        if self._is_sampling:
            self._events[part + 1].record()
            self._is_sampled = self._is_sampled or part + 1 == len(PARTS)

    def read(self) -> Mapping[str, float]:
        if not self._is_sampled:
            return {}
        self._events[-1].synchronize()
        self._is_sampled = False
        pairs = zip(PARTS, self._events[:-1], self._events[1:], strict=True)
        return {name: begin.elapsed_time(end) / 1000 for name, begin, end in pairs}
