"""Tells where the time of training steps goes, without making them wait."""

import time
from collections.abc import Mapping
from typing import Protocol

import torch

PARTS = ("data", "transfer", "forward", "backward", "optimizer")


class Stopwatch(Protocol):
    """Begins with a step, then is told the end of each of its PARTS; some come many times in one step."""

    def begin(self) -> None:
        """A step begins."""
        ...

    def mark(self, part: int) -> None:
        """What was done since the mark before was part number `part`."""
        ...

    def skip(self) -> None:
        """What was done since the mark before is no part of the step."""
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

    def skip(self) -> None:
        self._last = time.perf_counter()

    def read(self) -> Mapping[str, float]:
        num_steps = max(1, self._num_steps)
        means = {name: seconds / num_steps for name, seconds in zip(PARTS, self._seconds, strict=True)}
        self._seconds, self._num_steps = [0.0] * len(PARTS), 0
        return means


class _DeviceStopwatch:
    """Times one step between readings with events on the device, where calls return before their work is done."""

    def __init__(self) -> None:
        self._begin = _event()
        self._marks: list[tuple[int | None, torch.cuda.Event]] = []
        self._is_sampling = False
        self._is_sampled = False

    def begin(self) -> None:
        self._is_sampled = self._is_sampled or (self._is_sampling and bool(self._marks))
        self._is_sampling = not self._is_sampled
        if self._is_sampling:
            self._begin.record()

    def mark(self, part: int) -> None:
        self._note(part)

    def skip(self) -> None:
        self._note(None)

    def read(self) -> Mapping[str, float]:
        if not self._marks:
            return {}
        self._marks[-1][1].synchronize()
        seconds = [0.0] * len(PARTS)
        last = self._begin
        for part, event in self._marks:
            if part is not None:
                seconds[part] += last.elapsed_time(event) / 1000
            last = event
        self._marks, self._is_sampling, self._is_sampled = [], False, False
        return dict(zip(PARTS, seconds, strict=True))

    def _note(self, part: int | None) -> None:
        if self._is_sampling:
            event = _event()
            event.record()
            self._marks.append((part, event))


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
