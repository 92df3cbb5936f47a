"""The kernel's counters of processes that it killed because memory ran out, of the control group we live in.

Blocks, briefly.  Where there is no such counter nothing is claimed.
"""

from pathlib import Path


class MemoryCounters:
    """Counters of this process's control groups, of both kinds of hierarchy."""

    def __init__(self, mount: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> None:
        self._mount = mount
        self._groups = groups

    def num_killed(self) -> int | None:
        """How many processes of the group were killed for memory so far; None where the kernel does not say."""
        counts = [count for file in self._files() if (count := _read(file)) is not None]
        return sum(counts) if counts else None

    def _files(self) -> list[Path]:
        """One file of each hierarchy: our own group's, or the root's where ours is mounted as the root."""
        try:
            lines = self._groups.read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        files: list[Path] = []
        name = ""
        for line in lines:
            number, _, rest = line.partition(":")
            controllers, colon, path = rest.partition(":")
            roots: tuple[Path, ...] = ()
            if not colon:
                continue
            if controllers == "" and number == "0":
                name, roots = "memory.events", (self._mount, self._mount / "unified")
            elif "memory" in controllers.split(","):
                name, roots = "memory.oom_control", (self._mount / "memory",)
            candidates = [root / folder / name for root in roots for folder in (path.strip("/"), "")]
            files += [file for file in candidates if file.is_file()][:1]
        return files


def _read(file: Path) -> int | None:
    try:
        for line in file.read_text(encoding="ascii").splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    except (OSError, ValueError):
        return None
    return None
