"""The real server on a machine as small as a file says.  A program, not a module.

    python -m tests.doubles.small_machine LIMIT serve …

LIMIT is a file with a number of bytes, which may change while the server runs: what the server and everything that it
has started may take together, as a control group would have it.  What they take is what the kernel says of each.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import psutil

from headrace_server import devices


def taken_bytes(pid: int) -> int:
    """What a process and all below it take."""
    root = psutil.Process(pid)
    taken = 0
    for process in (root, *root.children(recursive=True)):
        try:
            taken += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return taken


def main() -> None:
    """Make the machine small before anybody looks at it, and run the server."""
    limit, find_devices, available = Path(sys.argv.pop(1)), devices.find_devices, devices.available_memory_bytes

    def find_small_devices() -> devices.Devices:
        return replace(find_devices(), memory_bytes=int(limit.read_text()))

    def available_in_small() -> int:
        return min(max(int(limit.read_text()) - taken_bytes(os.getpid()), 0), available())

    devices.find_devices = find_small_devices  # type: ignore[assignment]
    devices.available_memory_bytes = available_in_small  # type: ignore[assignment]
    from headrace_server.cli import main as run

    run()


if __name__ == "__main__":
    main()
