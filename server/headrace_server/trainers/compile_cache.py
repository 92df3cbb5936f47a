"""A folder of a node with compiled code, which trainers share with each other and with those that come after them.

Torch fills it and finds its way in it; here it is kept sound and bounded.  Whoever has the folder to itself checks the
files against the digests of when they were sealed, removes what is no longer what was written (torch then compiles it
anew), and removes what was not read for longest until the rest fits.  Files are sealed after each compilation, unless
others compile at the same time; then the last of them does it.  What a killed trainer left without a seal is removed.

What lies here is code.  It is written and read by trainers of one user of one machine, like their programs; it comes
from nowhere else, and goes nowhere.

    inductor/        torch's own
    seals.json       the size and the digest of each file
    learned.json     what compiling cost and gained here; see `compile_record.py`
    lock             held together by those who compile, alone by who cleans up
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

SEALS, LEARNED = "seals.json", "learned.json"
_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"

log = structlog.get_logger()


class Seal(BaseModel):
    """What a file must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size_bytes: int
    sha256: str
    written_at_ns: int
    """By the file system; a file that was not written since is not read again to be sealed."""


class _Seals(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, Seal]


class CompileCache:
    """One trainer's use of the folder, which is made if it is not there.  Raises OSError."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        self._content = folder / "inductor"
        self.learned_path = folder / LEARNED
        """Where what was learned about compiling is written down."""
        self._lock: int | None = None

    def open(self) -> None:
        """Clean up, if nobody else compiles, and have torch use the folder from now on in this process."""
        self._content.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._clean()
        fcntl.flock(self._lock, fcntl.LOCK_SH)  # waits for a cleaning at most, which is bounded by the folder's size
        os.environ[_VARIABLE] = str(self._content)

    def seal(self) -> None:
        """Have others trust what was written, if nobody else compiles at the moment; nothing when it is not open."""
        if self._lock is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._clean(seals_all=True)
        except BlockingIOError:
            log.debug("trainers.compile_cache_busy")
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_SH)

    def close(self) -> None:
        """Seal, and let go of the folder."""
        self.seal()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def clear(self) -> None:
        """Remove all code, for a compiler that stumbles over it."""
        shutil.rmtree(self._content, ignore_errors=True)
        self._content.mkdir(parents=True, exist_ok=True)

    def _clean(self, *, seals_all: bool = False) -> None:
        """Remove what is not as it was sealed, then what was not read for longest, until the rest fits; seal that.

        `seals_all` takes the files as they are: whoever wrote them has just compiled with them.  Else a file without a
        seal was left behind by a trainer that was killed.
        """
        before, after = self._read_seals(), dict[str, Seal]()
        ages: list[tuple[float, str]] = []
        for path in _files_below(self._content):
            name = str(path.relative_to(self._content))
            known = before.get(name)
            seal = known if seals_all and known is not None and _is_unwritten(path, known) else _seal_of(path)
            if seals_all or (known is not None and (known.size_bytes, known.sha256) == (seal.size_bytes, seal.sha256)):
                after[name] = seal
                ages.append((path.stat().st_atime, name))
            else:
                path.unlink(missing_ok=True)
                log.warning("trainers.compiled_code_removed", file=name)
        excess = sum(seal.size_bytes for seal in after.values()) - self._most_bytes
        for _, name in sorted(ages):
            if excess <= 0:
                break
            (self._content / name).unlink(missing_ok=True)
            excess -= after.pop(name).size_bytes
        write_whole(self._folder / SEALS, _Seals(files=after).model_dump_json())

    def _read_seals(self) -> dict[str, Seal]:
        try:
            return dict(_Seals.model_validate_json((self._folder / SEALS).read_bytes()).files)
        except (OSError, ValidationError):
            return {}  # then nothing is trusted


def write_whole(path: Path, text: str) -> None:
    """Write a file so that readers find the one before or this one.  Raises OSError."""
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    Path(scratch).replace(path)


def _files_below(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        yield from (Path(root) / name for name in names if not (Path(root) / name).is_symlink())


def _is_unwritten(path: Path, known: Seal) -> bool:
    status = path.stat()
    return (status.st_size, status.st_mtime_ns) == (known.size_bytes, known.written_at_ns)


def _seal_of(path: Path) -> Seal:
    status = path.stat()
    # To look at it is no use of it: what was not read for longest goes first.
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOATIME", 0)), "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Seal(size_bytes=status.st_size, sha256=digest, written_at_ns=status.st_mtime_ns)
