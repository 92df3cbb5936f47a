"""What the machine gives to this process: processors, memory, GPUs.

Knows no framework of machine learning.  What cgroups allow (versions 1 and 2, and every group above ours) counts: in a
container the machine's own numbers are not ours.  Everything here reads small files or loads the GPU's driver: call it
from a thread, not from the event loop.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from headrace_server import _native


@dataclass(frozen=True, slots=True)
class Devices:
    """What work can run on, as it was when we looked."""

    num_cores: int
    """Processor cores that may be busy at the same time, rounded down; at least 1."""
    memory_bytes: int
    """How much memory this process and its children may have together."""
    num_gpus: int
    """CUDA devices that this process sees (`CUDA_VISIBLE_DEVICES` counts)."""
    no_gpu_reason: str
    """Why there are no GPUs, for people; empty when there are."""
    gpus: tuple[str, ...] = ()
    """Name and compute capability of each: "NVIDIA H100 80GB HBM3 9.0"."""

    @property
    def has_gpu(self) -> bool:
        """Whether work that asks for a GPU can run here."""
        return self.num_gpus > 0


def find_devices(root: Path = Path("/")) -> Devices:
    """Look at the machine.  `root` is where /proc and /sys are.

    Takes a moment when there is a GPU: its driver is loaded.
    """
    num_gpus, no_gpu_reason = _native.cuda_device_count()
    limits = [bounds.memory_limit_bytes for bounds in _memory_bounds(root)]
    return Devices(
        num_cores=_num_cores(root),
        memory_bytes=min([psutil.virtual_memory().total, *limits]),
        num_gpus=num_gpus,
        no_gpu_reason=no_gpu_reason,
        gpus=tuple(_describe_gpu(number) for number in range(num_gpus)),
    )


def available_memory_bytes(root: Path = Path("/")) -> int:
    """How much more memory can be taken now before the machine or a cgroup runs out.

    File contents that the kernel only caches are counted as free.
    """
    free = [max(bounds.memory_limit_bytes - bounds.used_bytes, 0) for bounds in _memory_bounds(root)]
    return min([psutil.virtual_memory().available, *free])


def _describe_gpu(number: int) -> str:
    name, major, minor = _native.cuda_device(number)
    return f"{name} {major}.{minor}"


@dataclass(frozen=True, slots=True)
class _MemoryBounds:
    memory_limit_bytes: int
    used_bytes: int


@dataclass(frozen=True, slots=True)
class _Group:
    """A folder of a cgroup hierarchy: ours or one above."""

    folder: Path
    is_unified: bool
    """Whether this is cgroup version 2, where one hierarchy has all controllers."""


def _num_cores(root: Path) -> int:
    cores = float(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)
    for group in _groups(root, "cpu"):
        if group.is_unified:
            quota, _, period = _read(group.folder / "cpu.max").partition(" ")
        else:
            quota, period = _read(group.folder / "cpu.cfs_quota_us"), _read(group.folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:  # else "max", -1, or no such file
            cores = min(cores, int(quota) / int(period))
    return max(int(cores), 1)


def _memory_bounds(root: Path) -> Iterator[_MemoryBounds]:
    for group in _groups(root, "memory"):
        if group.is_unified:
            names = ("memory.max", "memory.current", "inactive_file")
        else:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        limit, used = _read(group.folder / names[0]), _read(group.folder / names[1])
        if limit.isdecimal():
            cached = _statistic(_read(group.folder / "memory.stat"), names[2])
            yield _MemoryBounds(int(limit), max(int(used) - cached, 0) if used.isdecimal() else 0)


def _statistic(text: str, name: str) -> int:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return 0


def _groups(root: Path, controller: str) -> Iterator[_Group]:
    """Our group and all above it that we can see, in each hierarchy that may limit what the controller counts."""
    paths = _own_paths(root)
    for line in _read(root / "proc/self/mountinfo").splitlines():
        # See proc_pid_mountinfo(5): ... 3 root, 4 mount point, ... "-", type, source, options.
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        is_unified = kind[0] == "cgroup2"
        if not is_unified and controller not in kind[2].split(","):
            continue
        path = paths.get("" if is_unified else controller)
        if path is not None:
            top = root / fields[4].lstrip("/")
            for folder in _folders(top, Path(fields[3]), Path(path)):
                yield _Group(folder, is_unified)


def _folders(top: Path, mounted: Path, path: Path) -> Iterator[Path]:
    """From the folder of a group up to the mount point, which shows the part of the hierarchy below `mounted`."""
    is_visible = path.is_relative_to(mounted) and ".." not in path.parts  # not always in a container
    folder = top / path.relative_to(mounted) if is_visible else top
    yield folder
    while folder != top:
        folder = folder.parent
        yield folder


def _own_paths(root: Path) -> dict[str, str]:
    """The path of our group, by controller; under "" that of version 2.  See cgroups(7)."""
    paths = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # not this version of cgroups, not this platform, or the group is gone: no limit to be seen
        return ""
