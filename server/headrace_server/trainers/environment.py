"""What a training ran with and on, for the history of its result."""

import platform
import re
from pathlib import Path

import numpy as np
import torch

from headrace_server import __version__


def describe_environment(device: torch.device, num_threads: int) -> dict[str, str]:
    """Versions and machine, as short texts."""
    return {
        "headrace-server": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": str(num_threads),
    }


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()
