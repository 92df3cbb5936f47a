"""The folder that holds everything a server keeps, and the lock that gives it to one server at a time.

headrace.db     jobs, journals, data sets, models, aliases
store/          contents of data sets, checkpoints, programs
work/           workspaces of agents
scratch/        copies and uploads under way; emptied at every start
run/            the sockets of the agents, and of the complete server behind the native door
lock            held while a server uses the folder; names its process
"""

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

from headrace_server.errors import CannotStart

LONGEST_SOCKET_PATH = 100
"""Linux takes 107 bytes; some room is left for what gRPC adds."""


class DataFolder:
    """An open data folder.  Blocks: meant for a thread."""

    def __init__(self, root: Path) -> None:
        """Make the folder if need be, lock it, and empty its scratch folder.

        Raises CannotStart when it cannot be used, or another server does.
        """
        self.root = root.absolute()
        self.database_file = self.root / "headrace.db"
        self.store = self.root / "store"
        self.work = self.root / "work"
        self.scratch = self.root / "scratch"
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _lock(self.root / "lock", self.root)
            try:
                if self.scratch.exists():
                    shutil.rmtree(self.scratch)
                for folder in (self.work, self.scratch):
                    folder.mkdir(mode=0o700, exist_ok=True)
                self.socket = _socket_path(self.root)
                self.public_socket = self.socket.with_name("public.sock")
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            problem = f"{error.strerror} ({error.filename})"
            raise CannotStart(f"the data folder {self.root} cannot be used: {problem}") from error

    def close(self) -> None:
        """Let another server have it."""
        os.close(self._lock)


def _lock(file: Path, root: Path) -> int:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 64).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise CannotStart(
            f"the data folder {root} is in use by another server (process {holder}); "
            "stop it, or choose another with --data"
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _socket_path(root: Path) -> Path:
    """Where agents dial in: the same at every start, so that agents find the next server too."""
    path = root / "run" / "worker.sock"
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / f"headrace-{os.getuid()}-{digest}" / "worker.sock"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    folder = path.parent.lstat()
    if not stat.S_ISDIR(folder.st_mode) or folder.st_uid != os.getuid() or stat.S_IMODE(folder.st_mode) & 0o077:
        raise CannotStart(f"{path.parent} must be a folder that only this user can enter")
    return path
