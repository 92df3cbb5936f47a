"""Fetches batches ahead of the training, where rows have to be brought to the device they are computed on.

Threads gather the rows of the next batches into page-locked memory and send them to the device on a stream of their
own, while the step before is computed.  How many there are follows from how long the training has to wait for them.
What comes is what was asked for: a batch that nobody foresaw is fetched at once.
"""

import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Batch: TypeAlias = tuple[Tensor, ...]

_WATCHED = 20  # batches between two decisions
_TOLERATED = 0.1  # the share of the time that the training may wait before there is one thread more
_MOST = 8


@dataclass(frozen=True, slots=True)
class Spot:
    """Which batch of a training."""

    seed: int
    epoch: int
    position: int


@dataclass(frozen=True, slots=True)
class _Sent:
    """A batch on its way to the device."""

    batch: Batch
    has_arrived: "torch.cuda.Event | None"


class Prefetch:
    """Batches of one training.  `gather` finds the rows of a batch in the host's memory; any thread may call it."""

    def __init__(
        self, gather: Callable[[Spot], Batch], following: Callable[[Spot], Spot], device: torch.device
    ) -> None:
        self._gather, self._following, self._device = gather, following, device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._most = max(1, min(_MOST, len(os.sched_getaffinity(0)) - 1))
        self._threads = ThreadPoolExecutor(self._most, thread_name_prefix="prefetch")
        self._ahead: deque[tuple[Spot, Future[_Sent]]] = deque()
        self.num_workers = 1
        """How many batches are fetched at once."""
        self._num_taken, self._waited_seconds, self._watched_from = 0, 0.0, time.perf_counter()

    def take(self, spot: Spot, gathered: Callable[[], None] = lambda: None) -> Batch:
        """The batch at a spot, on the device; the ones that follow it are fetched from now on.

        `gathered` is called when it is on its way to the device.
        """
        if not self._ahead or self._ahead[0][0] != spot:
            self._ahead.clear()
            self._ask_for(spot)
        began_at = time.perf_counter()
        _, future = self._ahead.popleft()
        sent = future.result()  # bounded by the reading of memory; raises what gathering raised
        self._waited_seconds += time.perf_counter() - began_at
        self._look_ahead(spot)
        self._decide()
        gathered()
        if sent.has_arrived is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(sent.has_arrived)
            for tensor in sent.batch:
                tensor.record_stream(stream)  # so that its memory is not given away while the step computes
        return sent.batch

    def close(self) -> None:
        """Fetch nothing more; what is being fetched is waited for."""
        self._ahead.clear()
        self._threads.shutdown(cancel_futures=True)

    def _look_ahead(self, spot: Spot) -> None:
        last = self._ahead[-1][0] if self._ahead else spot
        while len(self._ahead) < self.num_workers:
            last = self._following(last)
            self._ask_for(last)

    def _ask_for(self, spot: Spot) -> None:
        self._ahead.append((spot, self._threads.submit(self._fetch, spot)))

    def _fetch(self, spot: Spot) -> _Sent:
        gathered = self._gather(spot)
        if self._stream is None:
            return _Sent(gathered, None)
        # The allocator of page-locked memory gives a buffer away again only after the copy out of it.
        with torch.cuda.stream(self._stream):
            batch = tuple(tensor.pin_memory().to(self._device, non_blocking=True) for tensor in gathered)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
        return _Sent(batch, event)

    def _decide(self) -> None:
        self._num_taken += 1
        if self._num_taken < _WATCHED:
            return
        now = time.perf_counter()
        if self._waited_seconds > _TOLERATED * (now - self._watched_from):
            self.num_workers = min(self._most, self.num_workers + 1)
        self._num_taken, self._waited_seconds, self._watched_from = 0, 0.0, now
