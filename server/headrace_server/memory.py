"""How much memory is left for more, as measured: by the machine, by its control groups, and by what loads have taken.

One ledger for everything on this machine.  What other processes take (training jobs, their data loaders) is in the
kernel's figures, which count control groups too; what models take is in what this process has grown by while they were
loaded.  Nothing is believed that was only declared.
"""

import ctypes
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from headrace_server import _native
from headrace_server.devices import available_memory_bytes

RESERVE_BYTES = 64 << 20
"""Left for what is neither a model nor a job: calls, buffers, the server itself."""


@dataclass(slots=True, eq=False)
class Growth:
    """A load under way."""

    began_at_bytes: int
    most_at_once: int
    """Loads that were under way at the same time, this one included: they share what the process grows by."""


class Ledger:
    """The memory of this machine, as this process may use it.  Blocks for moments; safe from any thread."""

    def __init__(
        self,
        limit_bytes: int = 0,
        available: Callable[[], int] = available_memory_bytes,
        resident: Callable[[], int] = lambda: taken_bytes("cpu"),
    ) -> None:
        """`limit_bytes` is the most that models may take together; 0 means what the machine has left."""
        self._limit_bytes = limit_bytes
        self._available = available
        self._resident = resident
        self._lock = threading.Lock()
        self._under_way: set[Growth] = set()

    def free_bytes(self, held_bytes: int, expected_bytes: int) -> int:
        """How much more models may take, beside `held_bytes` of them and `expected_bytes` of those that are loading."""
        left = self.free_for_jobs(expected_bytes)
        if self._limit_bytes:
            left = min(left, self._limit_bytes - held_bytes - expected_bytes)
        return max(left, 0)

    def free_for_jobs(self, expected_bytes: int) -> int:
        """How much more a training job may take, beside `expected_bytes` of models that are loading."""
        return max(self._available() - RESERVE_BYTES - expected_bytes, 0)

    def begin(self) -> Growth:
        """Begin to measure a load."""
        with self._lock:
            growth = Growth(self._resident(), 1)
            self._under_way.add(growth)
            for one in self._under_way:
                one.most_at_once = max(one.most_at_once, len(self._under_way))
            return growth

    def end(self, growth: Growth) -> int:
        """End it, and return how much it has taken."""
        with self._lock:
            self._under_way.discard(growth)
            return max(self._resident() - growth.began_at_bytes, 0) // growth.most_at_once


def taken_bytes(device: str) -> int:
    """What this process takes of the memory of the host ("cpu"), or all processes of that of a GPU ("cuda:0").

    Differences of it say what something has taken.  Raises RuntimeError where there is no such device.
    """
    if device == "cpu":
        return int(psutil.Process().memory_info().rss)
    free_bytes, all_bytes = _native.cuda_memory(int(device.removeprefix("cuda:")))
    return all_bytes - free_bytes


def free_device_bytes(device: str) -> int:
    """What a GPU ("cuda:0") has left for anybody.  Raises RuntimeError where there is no such device."""
    return _native.cuda_memory(int(device.removeprefix("cuda:")))[0]


def give_back_freed_memory() -> None:
    """Let the system have what was freed: the C library would keep it for later, where nobody else can have it."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # another C library, which has its own way
            return
