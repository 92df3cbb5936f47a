"""Everything that a trainer has started, however it tried to leave, and the proof that it is gone.

The agent becomes the subreaper of its descendants: a process whose parent has died becomes the agent's own child, so
even one that made a session of its own is found.  Whatever descends from the agent belongs to the trainer, except
children that the agent had before.

Blocks: every method is meant for a thread.
"""

import contextlib
import ctypes
import os
import signal
import time

import psutil

from headrace_server.launchers.processes import descendants, is_alive, kill_until_gone

_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.02

LEAVE_SECONDS = 0.5
TERMINATE_SECONDS = 2.0


def become_subreaper() -> None:
    """Make orphaned descendants of this process its own children, for as long as it lives.  Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class ProcessTree:
    """The descendants of this process that are born after the tree was made."""

    def __init__(self) -> None:
        self._self = psutil.Process()
        self._strangers = set(self._self.children())
        self._roots: set[int] = set()

    def root(self, trainer_pid: int) -> None:
        """Name a trainer, whose end somebody else waits for."""
        self._roots.add(trainer_pid)

    def members(self) -> set[psutil.Process]:
        """All processes of the tree that are alive."""
        below = descendants({self._self}) - {self._self}
        if self._strangers:
            below -= descendants(self._strangers)
        return {process for process in below if is_alive(process)}

    def clear(self) -> int:
        """End what is still there when the trainer has ended: by itself, by SIGTERM, by SIGKILL.

        Returns how many processes did not end by themselves within `LEAVE_SECONDS`.  Raises CannotKill.
        """
        if not self._wait_until_empty(LEAVE_SECONDS):
            return 0
        left = self.members()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        self._wait_until_empty(TERMINATE_SECONDS)
        killed = self._kill()
        return max(len(left), killed)

    def kill(self) -> int:
        """Kill the trainer and all its descendants; returns how many were alive.  Raises CannotKill."""
        return self._kill()

    def reap(self) -> None:
        """Take note of the end of orphans that became our children, so that no zombie stays."""
        for process in set(self._self.children()) - self._strangers:
            if process.pid not in self._roots:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)

    def _kill(self) -> int:
        num_killed = kill_until_gone(self.members)
        self.reap()
        return num_killed

    def _wait_until_empty(self, seconds: float) -> bool:
        """Whether anything but the trainer's own remains is left after so many seconds."""
        deadline = time.monotonic() + seconds
        while self.members():
            if time.monotonic() > deadline:
                return True
            time.sleep(_POLL_SECONDS)
        self.reap()
        return False
