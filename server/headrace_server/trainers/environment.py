"""What a training ran with and on, for its checkpoints and for the history of its result."""

import hashlib
import platform
import re
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from headrace_server import __version__


def describe_environment(device: torch.device, num_threads: int) -> dict[str, str]:
    """Versions and machine, as short texts."""
    described = {
        "headrace-server": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "packages": digest_of_packages(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": str(num_threads),
    }
    if device.type == "cuda":
        described["cuda"] = str(torch.version.cuda)
        described["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
        described["driver"] = _driver_version()
    return described


@cache
def digest_of_packages() -> str:
    """A hash over the name and version of every installed distribution: the same packages, the same hash."""
    found = {(one.name.lower().replace("_", "-"), one.version) for one in metadata.distributions() if one.name}
    lines = "".join(f"{name}=={version}\n" for name, version in sorted(found))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def digest_of_code(code: str) -> str:
    """A hash over the source of the package that `package.module:function` lies in; of the module, if it is in none.

    Modules that it imports from elsewhere are told by the versions of their distributions, not here.  Imports nothing
    but the packages around it.
    """
    module = code.partition(":")[0]
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return "unknown"
    source = Path(spec.origin)
    in_package = "." in module or source.name == "__init__.py"
    files = sorted(source.parent.rglob("*.py")) if in_package else [source]
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(source.parent).as_posix()} {len(content)}\n".encode() + content)
    return f"sha256:{digest.hexdigest()}"


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """What of an environment is another one now, as texts; what only one of them knows is left out."""
    return [f"{name} {before[name]} → {now[name]}" for name in before if name in now and before[name] != now[name]]


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def _driver_version() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    found = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", text)
    return found[1] if found else "unknown"
