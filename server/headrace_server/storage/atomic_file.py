"""A file that appears complete or not at all, whatever happens to the process or the machine meanwhile.

Blocks: every method is meant for a thread.  One lock makes it safe to discard a file while another thread, whose caller
has gone, is still in the middle of a write.
"""

import errno
import fcntl
import hashlib
import os
import secrets
import stat
import threading
from collections.abc import Iterable
from pathlib import Path

from headrace_server.errors import StorageFull

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class AtomicFile:
    """One new file, written under a temporary name in `drafts`, then renamed to `target`, which it replaces.

    `drafts` must be on the file system of `target`.  The temporary file is locked while its writer lives; see
    `remove_dead_drafts`.  Nothing happens on disk before the first write.  Call `discard` in the end in any case.
    Folders are made only below `home`, by default the one that holds both: where that has gone, as a disk may, nothing
    takes its place.
    """

    def __init__(self, target: Path, drafts: Path, home: Path | None = None) -> None:
        self._target = target
        self._draft = drafts / f"{secrets.token_hex(16)}.draft"
        self._home = home or Path(os.path.commonpath((target.parent, drafts)))
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._is_over = False
        self._hash = hashlib.sha256()
        self._size_bytes = 0

    def write(self, pieces: Iterable[bytes]) -> None:
        """Append.  Raises StorageFull when there is no room, RuntimeError after `discard`."""
        with self._lock:
            self._write(pieces)

    def publish(self, mode: int = 0o444, *, is_durable: bool = True) -> tuple[int, str]:
        """Let the file appear, and make it outlast a power cut; returns its size in bytes and its digest.

        Raises StorageFull when there is no room, ValueError where a folder has its name or a file that of its folder.
        """
        with self._lock:
            self._write(())
            assert self._descriptor is not None
            try:
                os.fchmod(self._descriptor, mode)
                if is_durable:
                    os.fsync(self._descriptor)
                self._appear(is_durable)
            except OSError as error:
                raise self._explain(error) from error
            self._close()
            return self._size_bytes, f"sha256:{self._hash.hexdigest()}"

    def discard(self) -> None:
        """Remove what has not been published; waits for a write under way.  Harmless afterwards, and repeatedly."""
        with self._lock:
            if not self._is_over and self._descriptor is not None:
                self._draft.unlink(missing_ok=True)
            self._close()

    def _write(self, pieces: Iterable[bytes]) -> None:
        if self._is_over:
            raise RuntimeError(f"{self._target} is no longer being written")
        try:
            if self._descriptor is None:
                self._descriptor = _create_locked(self._draft)
            for piece in pieces:
                self._hash.update(piece)
                self._size_bytes += len(piece)
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            raise self._explain(error) from error

    def _appear(self, is_durable: bool) -> None:
        # Whoever deletes the last file of a folder removes the folder, perhaps between our two steps.
        for _ in range(100):
            try:
                make_folder(self._target.parent, self._home)
                self._draft.rename(self._target)
            except FileNotFoundError:
                if not self._home.is_dir():
                    raise
                continue
            except (NotADirectoryError, IsADirectoryError) as error:
                raise ValueError(f"{self._target} cannot be a file: {error.strerror}") from error
            if is_durable:
                sync_folder(self._target.parent)
            return
        raise FileNotFoundError(errno.ENOENT, "the folder disappears as often as it is made", str(self._target.parent))

    def _explain(self, error: OSError) -> Exception:
        return StorageFull(self._size_bytes) if error.errno in _NO_ROOM else error

    def _close(self) -> None:
        self._is_over = True
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def remove_dead_drafts(drafts: Path) -> int:
    """Remove what writers that died have left behind; returns how many.

    Writers that live, in this process or another, keep theirs.
    """
    num_removed = 0
    for draft in drafts.glob("*.draft"):
        try:
            descriptor = os.open(draft, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.unlink(missing_ok=True)
            num_removed += 1
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)
    return num_removed


def make_folder(folder: Path, home: Path) -> None:
    """Make a folder with all its parents below `home`, durably.

    Raises NotADirectoryError where a file is in the way, FileNotFoundError where `home` is missing or somebody removes
    the folder meanwhile.
    """
    if folder == home or folder.is_dir():
        return
    make_folder(folder.parent, home)
    try:
        folder.mkdir()
    except FileExistsError as error:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "a file is in the way", str(folder)) from error
    else:
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; harmless when the folder is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create_locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink > 0:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # taken for dead and removed before we had locked it
