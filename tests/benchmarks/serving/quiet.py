"""Whether a measurement was disturbed: how many cores the programs of others had meanwhile."""

import time
from dataclasses import dataclass

import psutil

MAX_OTHERS_CORES = 0.1
"""A round in which others had more than this is no result."""

_KERNEL = 2
"""The parent of the kernel's own threads, which do the network's work for us."""
_ADOPTER = 1
"""Whose children are ours, too: those that our servers left behind when they were killed."""


@dataclass(frozen=True, slots=True)
class Others:
    """Processor time, until a moment, of every program that is neither this one nor below it.

    Counted by process, not as the machine's time less our own: the kernel's work for our own sockets would look like
    somebody else.  Time that a hypervisor gave to other machines counts as theirs.
    """

    at: float
    seconds: dict[tuple[int, float], float]
    """By process id and the time of its start; its ended children are included."""
    stolen: float

    @classmethod
    def now(cls) -> "Others":
        """As of now."""
        me = psutil.Process()
        ours = {me.pid, *(child.pid for child in me.children(recursive=True))}
        seconds = {}
        for process in psutil.process_iter():
            try:
                if process.pid in ours or process.pid == _KERNEL or process.ppid() == _KERNEL:
                    continue
                times = process.cpu_times()[: 2 if process.pid == _ADOPTER else 4]
                seconds[process.pid, process.create_time()] = sum(times)
            except psutil.Error:
                continue
        return cls(time.perf_counter(), seconds, float(getattr(psutil.cpu_times(), "steal", 0.0)))

    def cores_since(self, before: "Others") -> float:
        """How many cores they had since then.

        A child that ended in between counts in its parent with its whole life: too much rather than too little.
        """
        used = sum(max(0.0, spent - before.seconds.get(key, 0.0)) for key, spent in self.seconds.items())
        return (used + self.stolen - before.stolen) / (self.at - before.at)
