"""Work that gives way: on a thread of its own, nicer than those that answer calls."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

NICENESS = 10
"""With as many busy threads as cores, a tenth of what each of them gets."""

T = TypeVar("T")


def run_nicely(work: Callable[[], T]) -> T:
    """Do it on a thread that gives way to all others, and wait for it.  Raises what it raises.

    Only for work that leaves the interpreter's lock alone: whoever holds that must not give way, or all wait for him.
    A thread of its own, because without privileges none becomes less nice again; threads that it starts are as nice.
    """
    done: Future[T] = Future()

    def run() -> None:
        if sys.platform == "linux":  # elsewhere that would be the whole process
            os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), NICENESS))
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - whoever waits raises it
            done.set_exception(error)

    threading.Thread(target=run, name="nicely", daemon=True).start()
    return done.result()
