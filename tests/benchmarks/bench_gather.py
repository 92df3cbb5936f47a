"""How fast rows of many requests become one batch: the native gather against NumPy.

Two NumPy programs stand against it: the reference loop that the tests use, and `np.concatenate` into the batch, the
best that NumPy has.  Sides alternate (A B C A B C ...); each figure is the median over the rounds, with its extremes.
Rounds in which other programs had more than a tenth of a core are left out and measured again.

    python tests/benchmarks/bench_gather.py [--rounds N]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from headrace_server import _native
from headrace_server.kernels import reference
from headrace_server.kernels.gather import gather
from headrace_server.tensors import Array

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.serving.quiet import MAX_OTHERS_CORES, Others

ROUND_SECONDS = 0.2


@dataclass(frozen=True)
class Case:
    """Blocks of one row each, and the batch that they go into."""

    name: str
    row_shape: tuple[int, ...]
    num_rows: int
    dtype: np.dtype[np.generic]


FP32, BF16, FP16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)
CASES = [
    *(Case("64 rows of 64", (64,), 64, dtype) for dtype in (FP32, BF16, FP16)),
    *(Case("32 rows of 3x224x224", (3, 224, 224), 32, dtype) for dtype in (FP32, BF16, FP16)),
]


def seconds_per_call(call: Callable[[], object]) -> float:
    """The mean time of a call over a fifth of a second."""
    num_calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < ROUND_SECONDS:
        call()
        num_calls += 1
    return elapsed / num_calls


def measure(case: Case, num_rounds: int) -> str:
    """One line of the table."""
    random = np.random.default_rng(0)
    sources: list[Array] = [random.standard_normal((1, *case.row_shape), np.float32) for _ in range(case.num_rows)]
    batch = np.zeros((case.num_rows, *case.row_shape), case.dtype)
    sides: dict[str, Callable[[], object]] = {
        "native": lambda: gather(sources, batch),
        "reference": lambda: reference.gather(sources, batch),
        "concatenate": lambda: np.concatenate(sources, out=batch, casting="unsafe"),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    num_disturbed = 0
    while len(times["native"]) < num_rounds:
        before = Others.now()
        round_times = {name: seconds_per_call(call) for name, call in sides.items()}
        if Others.now().cores_since(before) > MAX_OTHERS_CORES:
            num_disturbed += 1
            if num_disturbed > 40 * num_rounds:
                return f"| {case.name}, FP32 to {case.dtype.name} | the machine is too busy to measure |"
            continue
        for name, seconds in round_times.items():
            times[name].append(seconds)

    def text(name: str) -> str:
        micros = [1e6 * seconds for seconds in times[name]]
        return f"{statistics.median(micros):,.1f} ({min(micros):,.1f}-{max(micros):,.1f})"

    def ratio(name: str) -> str:
        ratios = [theirs / ours for theirs, ours in zip(times[name], times["native"], strict=True)]
        return f"{statistics.median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f})"

    moved = sum(source.nbytes for source in sources) + batch.nbytes
    rate = moved / statistics.median(times["native"]) / 1e9
    return (
        f"| {case.name}, FP32 to {case.dtype.name} | {text('native')} | {rate:.1f} | {text('reference')} "
        f"| {text('concatenate')} | {ratio('reference')} | {ratio('concatenate')} | {num_disturbed} |"
    )


def main() -> None:
    """Measure all cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    num_rounds = parser.parse_args().rounds
    print(
        f"numpy {np.__version__}, ml_dtypes {ml_dtypes.__version__}, {_native.instruction_sets[0]}, {num_rounds} rounds"
    )
    print(
        "| case | native, us | GB/s moved | reference, us | concatenate, us | ref./native | conc./native | left out |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES:
        print(measure(case, num_rounds), flush=True)


if __name__ == "__main__":
    main()
