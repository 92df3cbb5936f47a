"""The threads that help a run of torch on a CPU: as many as a session wants, and none that nobody needs.

Torch computes with OpenMP, which keeps the helpers of a thread that has computed until that thread ends.  Between two
parts of a run they spin for a moment, so that the next part begins at once; but only while all helpers of the process
together are no more than its processors (libgomp's manual, GOMP_SPINCOUNT).  Helpers that one lane keeps for nothing
make those of another go to sleep after each part: a run of some milliseconds then takes twice as long.
"""

import ctypes
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

_SOFT = 1
"""omp_pause_soft (OpenMP 5.0, 3.2.44): let the helpers go; what they keep to themselves stays."""
_of_thread = threading.local()


def use_threads(num_threads: int) -> None:
    """Let torch compute with so many threads in what this thread calls; helpers that are too many go."""
    import torch

    before = getattr(_of_thread, "count", None)
    if before == num_threads:
        return
    if before is not None and before > num_threads:
        _let_helpers_go()(_SOFT)
    torch.set_num_threads(num_threads)
    _of_thread.count = num_threads


def rest() -> None:
    """This thread computes nothing for now."""
    if getattr(_of_thread, "count", 1) > 1:
        use_threads(1)


@cache
def _let_helpers_go() -> Callable[[int], Any]:
    import torch

    library = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
    if not library.exists():  # another OpenMP, with rules of its own
        return lambda _kind: None
    let_go: Callable[[int], Any] = ctypes.CDLL(str(library)).omp_pause_resource_all
    return let_go
