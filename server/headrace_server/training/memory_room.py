"""Whether the memory that models and jobs share has room for one more job.

What a job takes is known when it runs: its trainer then fits its batches into what is free.  What it takes at least is
known before: an interpreter with torch for each rank, and the data set.  A job that the machine can never give that is
refused with what is missing; one that there is no room for now waits, and models that nobody uses leave for it.  Keeps
nothing.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

from headrace_server.datasets.dataset import DatasetVersion
from headrace_server.devices import Devices
from headrace_server.errors import DeviceOutOfMemory
from headrace_server.memory import RESERVE_BYTES
from headrace_server.names import DatasetName
from headrace_server.training.goods import Datasets
from headrace_server.training.spec import TrainingSpec

RANK_BYTES = 192 << 20
"""What one trainer takes before it has read a row: an interpreter with torch 2.13 and the families had 171 MiB that it
shared with nobody."""


class Memory(Protocol):
    """The memory of this machine; `inference.engine.Engine` gives it away."""

    async def make_room(self, nbytes: int) -> int:
        """Have models that nobody uses leave until so much is free; returns how much is missing then, 0 for nothing."""
        ...


class MemoryRoom:
    """Says what jobs lack."""

    def __init__(self, memory: Memory, datasets: Datasets, devices: Callable[[], Devices]) -> None:
        self._memory = memory
        self._datasets = datasets
        self._devices = devices

    async def check(self, spec: TrainingSpec) -> None:
        """Raise DeviceOutOfMemory when this machine can never give a job the least that it takes."""
        missing = await self._least_bytes(spec) - max(self._devices().memory_bytes - RESERVE_BYTES, 0)
        if missing > 0:
            raise DeviceOutOfMemory("cpu", missing_bytes=missing)

    async def missing_bytes(self, spec: TrainingSpec, beside: Iterable[TrainingSpec]) -> int:
        """What a job lacks now of the least that it takes; 0 when it may begin.

        `beside` are jobs that have begun and not taken theirs yet.  Idle models leave where that helps.  Raises
        DatasetNotFound.
        """
        needed = await self._least_bytes(spec) + sum([await self._least_bytes(other) for other in beside])
        return await self._memory.make_room(needed)

    async def _least_bytes(self, spec: TrainingSpec) -> int:
        return least_bytes(spec, await self._datasets.version(DatasetName.parse(spec.dataset, "spec.dataset")))


def least_bytes(spec: TrainingSpec, dataset: DatasetVersion) -> int:
    """What all ranks of a job take at least; each reads the data set for itself."""
    return spec.num_ranks * (RANK_BYTES + dataset.size_bytes)
