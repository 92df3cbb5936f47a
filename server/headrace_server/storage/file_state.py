"""Whether a file is still the one that was looked at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class FileState:
    """A file as it is: whoever writes to it, or puts another one in its place, gives it another state."""

    path: Path
    inode: int
    size_bytes: int
    written_at_ns: int
    changed_at_ns: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """As of now.  Raises OSError."""
        found = path.stat()
        return cls(path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
