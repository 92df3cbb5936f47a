"""Lets a process give way to others on the processor.

Where Linux groups processes by session (sched_autogroup), the niceness of a process counts among those of its session
only, so that a session has one of its own: without it a nice process in a session of its own takes as much as anybody.
"""

import contextlib
import errno
import os
import time
from pathlib import Path

_ATTEMPTS = 5
_PAUSE_SECONDS = 0.12  # the kernel takes one word about sessions from ordinary users in a tenth of a second


def be_nice(pid: int, niceness: int) -> None:
    """Let everybody else have the processor before a process that leads a session, and before all else in that.

    Of the process every thread gets the niceness, and threads that come later inherit it.  Nothing happens where it is
    gone, or is not allowed to be made so.  May block for half a second.
    """
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, int(thread.name), niceness)
    _be_nice_as_session(pid, niceness)


def _be_nice_as_session(pid: int, niceness: int) -> None:
    group = Path(f"/proc/{pid}/autogroup")
    for _ in range(_ATTEMPTS):
        try:
            if os.getsid(pid) == pid and group.exists():
                group.write_text(str(niceness))
        except OSError as error:
            if error.errno == errno.EAGAIN:
                time.sleep(_PAUSE_SECONDS)
                continue
        return
