"""What a process may use: the machine's resources, cut down by cgroups of either version."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from headrace_server import _native
from headrace_server.devices import Devices, available_memory_bytes, find_devices

MIB = 2**20
ONE_CORE_LEFT = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores to take one away")


class FakeRoot:
    """A folder with the files of /proc and /sys that tell of cgroups."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, content: str) -> None:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n")


@pytest.fixture
def root(tmp_path: Path) -> FakeRoot:
    return FakeRoot(tmp_path)


@pytest.fixture
def unified(root: FakeRoot) -> FakeRoot:
    """Cgroup version 2: our group is /jobs/one."""
    root.write("proc/self/cgroup", "0::/jobs/one")
    root.write(
        "proc/self/mountinfo",
        "24 23 0:22 / /proc rw - proc proc rw\n31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw",
    )
    return root


@pytest.fixture
def split(root: FakeRoot) -> FakeRoot:
    """Cgroup version 1 as a container sees it: the groups' own paths are not under the mount points."""
    root.write("proc/self/cgroup", "5:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/")
    root.write(
        "proc/self/mountinfo",
        "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
        "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory",
    )
    return root


def test_without_cgroups_the_whole_machine_is_ours(root: FakeRoot) -> None:
    devices = find_devices(root.path)

    assert devices.num_cores == len(os.sched_getaffinity(0))
    assert devices.memory_bytes == psutil.virtual_memory().total


@ONE_CORE_LEFT
def test_a_quota_of_processor_time_is_counted_in_whole_cores(unified: FakeRoot) -> None:
    unified.write("sys/fs/cgroup/jobs/one/cpu.max", "190000 100000")

    assert find_devices(unified.path).num_cores == 1


def test_less_than_a_core_is_still_one(unified: FakeRoot) -> None:
    unified.write("sys/fs/cgroup/jobs/one/cpu.max", "20000 100000")

    assert find_devices(unified.path).num_cores == 1


@ONE_CORE_LEFT
def test_a_group_above_ours_limits_us_too(unified: FakeRoot) -> None:
    unified.write("sys/fs/cgroup/jobs/one/cpu.max", "max 100000")
    unified.write("sys/fs/cgroup/jobs/cpu.max", "100000 100000")
    unified.write("sys/fs/cgroup/jobs/one/memory.max", str(300 * MIB))
    unified.write("sys/fs/cgroup/jobs/memory.max", str(200 * MIB))

    devices = find_devices(unified.path)

    assert devices.num_cores == 1
    assert devices.memory_bytes == 200 * MIB


def test_no_limit_is_written_as_max(unified: FakeRoot) -> None:
    unified.write("sys/fs/cgroup/jobs/one/cpu.max", "max 100000")
    unified.write("sys/fs/cgroup/jobs/one/memory.max", "max")

    assert find_devices(unified.path) == find_devices()


@ONE_CORE_LEFT
def test_version_1_limits_count_where_a_container_sees_only_its_own_part(split: FakeRoot) -> None:
    split.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "150000")
    split.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000")
    split.write("sys/fs/cgroup/memory/memory.limit_in_bytes", str(512 * MIB))

    devices = find_devices(split.path)

    assert devices.num_cores == 1
    assert devices.memory_bytes == 512 * MIB


def test_version_1_without_limits_is_the_whole_machine(split: FakeRoot) -> None:
    split.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1")
    split.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000")
    split.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")

    devices = find_devices(split.path)

    assert devices.num_cores == len(os.sched_getaffinity(0))
    assert devices.memory_bytes == psutil.virtual_memory().total


def test_file_contents_that_are_only_cached_count_as_free_memory(unified: FakeRoot) -> None:
    group = "sys/fs/cgroup/jobs/one/"
    unified.write(group + "memory.max", str(100 * MIB))
    unified.write(group + "memory.current", str(90 * MIB))
    unified.write(group + "memory.stat", f"anon {20 * MIB}\ninactive_file {70 * MIB}")

    assert available_memory_bytes(unified.path) == 80 * MIB


def test_a_group_over_its_limit_has_nothing_left_and_not_less_than_nothing(split: FakeRoot) -> None:
    split.write("sys/fs/cgroup/memory/memory.limit_in_bytes", str(100 * MIB))
    split.write("sys/fs/cgroup/memory/memory.usage_in_bytes", str(130 * MIB))
    split.write("sys/fs/cgroup/memory/memory.stat", f"inactive_file 5\ntotal_inactive_file {10 * MIB}")

    assert available_memory_bytes(split.path) == 0


def test_a_group_outside_of_what_is_mounted_falls_back_to_the_mount_point(root: FakeRoot) -> None:
    root.write("proc/self/cgroup", "0::/../elsewhere")
    root.write("proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")
    root.write("sys/fs/cgroup/memory.max", str(64 * MIB))
    root.write("sys/fs/elsewhere/memory.max", str(32 * MIB))

    assert find_devices(root.path).memory_bytes == 64 * MIB


def test_files_that_make_no_sense_limit_nothing(unified: FakeRoot) -> None:
    unified.write("proc/self/mountinfo", "-\n31 23\n31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n1 - cgroup x")
    unified.write("sys/fs/cgroup/jobs/one/cpu.max", "many few")
    unified.write("sys/fs/cgroup/jobs/one/memory.max", "")

    assert find_devices(unified.path) == find_devices()


def test_gpus_are_counted_without_torch_and_their_absence_has_a_reason() -> None:
    devices = find_devices()

    assert (devices.num_gpus, devices.no_gpu_reason) == _native.cuda_device_count()
    assert devices.has_gpu == (devices.num_gpus > 0)
    assert devices.has_gpu == (devices.no_gpu_reason == "")
    assert len(devices.gpus) == devices.num_gpus


@pytest.mark.gpu
def test_a_gpu_says_its_name_and_what_it_is_capable_of() -> None:
    import torch

    name, capability = torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0)

    assert find_devices().gpus[0] == f"{name} {capability[0]}.{capability[1]}"


def test_a_machine_has_a_gpu_when_it_has_one_or_more() -> None:
    assert Devices(num_cores=1, memory_bytes=1, num_gpus=1, no_gpu_reason="").has_gpu
    assert not Devices(num_cores=1, memory_bytes=1, num_gpus=0, no_gpu_reason="no CUDA driver is installed").has_gpu


def test_looking_at_the_machine_does_not_import_torch() -> None:
    program = (
        "import sys; from headrace_server import devices; devices.find_devices(); sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", program], timeout=240, check=False).returncode == 0
