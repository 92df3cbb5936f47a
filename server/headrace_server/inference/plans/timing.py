"""Times runs on a machine that does other things too.

What else a machine does only makes a run slower, for as long as it does it.  So a figure that decides comes of several
blocks of runs at different moments, in turn with what it is compared with, and the least of them counts; and two blocks
must agree, or more are timed.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

LEAST_RUNS, MOST_RUNS = 3, 50
LEAST_BLOCKS, MOST_BLOCKS = 3, 8
NOISE = 1.1
"""Blocks that differ by less than this have seen the same machine."""

K = TypeVar("K")


def median_run(run: Callable[[], object], budget_seconds: float, most_seconds: float | None = None) -> float:
    """The median of so many runs as fit the budget, in seconds; one is enough that takes longer than `most_seconds`."""
    run()  # the first one pays for what is lazy
    taken: list[float] = []
    until = time.perf_counter() + budget_seconds
    while len(taken) < LEAST_RUNS or (time.perf_counter() < until and len(taken) < MOST_RUNS):
        started_at = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started_at)
        if most_seconds is not None and taken[0] > most_seconds:
            break
    return statistics.median(taken)


def time_in_turns(blocks: Mapping[K, Callable[[], float]]) -> dict[K, float]:
    """The least of several blocks of each side, which take turns; each block times some runs and returns their median.

    There are three of each, and more while the two best of a side do not agree: then the machine was disturbed in all
    but one, and perhaps in that too.
    """
    taken: dict[K, list[float]] = {side: [] for side in blocks}
    for count in range(1, MOST_BLOCKS + 1):
        for side, block in blocks.items():
            taken[side].append(block())
        if count >= LEAST_BLOCKS and all(_agree(times) for times in taken.values()):
            break
    return {side: min(times) for side, times in taken.items()}


def _agree(times: list[float]) -> bool:
    best, second, *_ = sorted(times)
    return second <= best * NOISE
