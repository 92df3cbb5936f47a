"""What a measurement depends on besides the program."""

from dataclasses import replace
from pathlib import Path

from headrace_server.devices import Devices
from headrace_server.inference.plans.environment import describe_environment, digest_of

PLAIN = Devices(num_cores=2, memory_bytes=1 << 30, num_gpus=0, no_gpu_reason="none")
ONE = replace(PLAIN, num_gpus=1, no_gpu_reason="", gpus=("NVIDIA H100 80GB HBM3 9.0",))


def digest(devices: Devices, root: Path) -> str:
    return digest_of(describe_environment(devices, root))


def driver(root: Path, version: str) -> None:
    path = root / "proc/driver/nvidia/version"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build\nGCC version: 12\n"
    )


def test_another_gpu_another_capability_and_another_driver_are_other_environments(tmp_path: Path) -> None:
    driver(tmp_path, "580.65.06")
    found = [digest(PLAIN, tmp_path), digest(ONE, tmp_path)]
    found.append(digest(replace(ONE, gpus=("NVIDIA A100-SXM4-80GB 8.0",)), tmp_path))
    found.append(digest(replace(ONE, gpus=("NVIDIA H100 80GB HBM3 8.9",)), tmp_path))
    found.append(digest(replace(ONE, num_gpus=2, gpus=ONE.gpus * 2), tmp_path))
    driver(tmp_path, "580.82.07")
    found.append(digest(ONE, tmp_path))

    assert len(set(found)) == len(found)


def test_the_same_machine_is_the_same_environment_and_a_driver_counts_only_beside_a_gpu(tmp_path: Path) -> None:
    without = describe_environment(PLAIN, tmp_path)
    driver(tmp_path, "580.65.06")

    assert describe_environment(PLAIN, tmp_path) == without
    assert digest(ONE, tmp_path) == digest(replace(ONE), tmp_path)
    described = describe_environment(ONE, tmp_path)
    assert (described["gpus"], described["driver"]) == ("NVIDIA H100 80GB HBM3 9.0", "580.65.06")


def test_a_driver_that_does_not_say_its_version_is_unknown(tmp_path: Path) -> None:
    assert describe_environment(ONE, tmp_path)["driver"] == "unknown"
