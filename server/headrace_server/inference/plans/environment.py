"""What a measurement depends on besides the program: hardware and versions.  When any of it changes, it is redone."""

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from headrace_server.devices import Devices
from headrace_server.inference.plans.candidates import Means

REVISION = 5
"""Of how plans are made and measured.  Count it up when old measurements must not be used any more."""

_LIBRARIES = ("torch", "triton", "onnxruntime", "onnxruntime-gpu", "onnx", "numpy")
# The instruction sets that decide which plan is fast.
_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "amx_fp16",
)


def describe_environment(devices: Devices, root: Path = Path("/")) -> dict[str, str]:
    """Everything that decides how fast and how exact plans are, for people and for comparison.  Reads small files."""
    processor, flags = _processor(root)
    return {
        "processor": processor,
        "instructions": " ".join(flag for flag in _FLAGS if flag in flags),
        "cores": str(devices.num_cores),
        "gpus": ", ".join(devices.gpus) or str(devices.num_gpus),
        **({"driver": _driver(root)} if devices.has_gpu else {}),
        "plans": str(REVISION),
        **{name: found for name in _LIBRARIES if (found := _version(name)) is not None},
    }


def digest_of(environment: Mapping[str, str]) -> str:
    """The same for equal environments only: 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(dict(sorted(environment.items()))).encode()).hexdigest()[:32]


def find_means(devices: Devices) -> Means:
    """What there is to make plans with.  Does not import any runtime."""
    return Means(
        can_compile=shutil.which(os.environ.get("CXX", "g++")) is not None,
        has_gpu=devices.has_gpu,
        providers=("TensorrtExecutionProvider", "CUDAExecutionProvider") if _version("onnxruntime-gpu") else (),
    )


def _processor(root: Path) -> tuple[str, set[str]]:
    name, flags = platform.processor() or platform.machine(), set[str]()
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return name, flags
    for line in lines:
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            name = value
        elif key in ("flags", "Features"):
            flags = set(value.split())
        elif not key:
            break  # all cores are taken to be alike
    return name, flags


def _driver(root: Path) -> str:
    """The version of NVIDIA's driver, which loads what was compiled and decides how fast it is launched."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    found = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", text)
    return found[1] if found else "unknown"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
