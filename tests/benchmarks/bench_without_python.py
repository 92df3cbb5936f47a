"""What it gains that lanes run ONNX programs themselves, instead of going through Python with every batch.

    python tests/benchmarks/bench_without_python.py [--callers 1,8,64] [--seconds 1.5] [--rounds 4]

`mlp` behind the native door under a closed loop, in turn: with the runtime's library, with its Python package (a server
that is told that there is no library), and a bare echo in gRPC C++.  Memory is what is resident after each load.

Takes about two minutes as it stands.  Prints Markdown.
"""

import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.serving import arguments, headrace, tables
from tests.benchmarks.serving.limits import CPP_ECHO
from tests.benchmarks.serving.rounds import Measured, under_load
from tests.benchmarks.serving.servers import Side, check
from tests.benchmarks.serving.workloads import workload

MODEL = "mlp"
WITHOUT, THROUGH = "without Python", "through Python"
NO_LIBRARY = """
import importlib.util
if importlib.util.find_spec("headrace_server"):
    from headrace_server.kernels import onnx_programs
    onnx_programs.library = lambda: None
"""


@contextmanager
def no_library() -> Iterator[None]:
    """Whoever starts meanwhile finds no library of ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(NO_LIBRARY)
        os.environ["PYTHONPATH"] = folder
        try:
            yield
        finally:
            del os.environ["PYTHONPATH"]


def load(side: Side, callers: list[int], seconds: float) -> dict[int, Measured]:
    """A side under each load."""
    with tempfile.TemporaryDirectory() as folder, side.start(workload(MODEL), Path(folder)) as endpoint:
        if side is not CPP_ECHO:
            check(endpoint, workload(MODEL))
        under_load(endpoint, callers[0], 0.5)
        return {count: under_load(endpoint, count, seconds, attempts=1) for count in callers}


def main() -> None:
    """Measure and print."""
    asked = arguments.parser(__doc__, seconds=1.5, rounds=4).parse_args()
    CPP_ECHO.prepare()
    found: dict[tuple[str, int], list[Measured]] = {}
    for _ in range(asked.rounds):
        with no_library():
            through = load(headrace.NATIVE, asked.callers, asked.seconds)
        turns = {
            THROUGH: through,
            WITHOUT: load(headrace.NATIVE, asked.callers, asked.seconds),
            "C++ echo": load(CPP_ECHO, asked.callers, asked.seconds),
        }
        for name, loads in turns.items():
            for count, measured in loads.items():
                found.setdefault((name, count), []).append(measured)
    print(f"{tables.machine()}\n{asked.rounds} rounds of {asked.seconds:g} s, in turn; medians (extremes)\n")
    lines = []
    for (name, count), rounds in sorted(found.items(), key=lambda each: each[0][1]):
        columns = [
            [each.answers_per_second for each in rounds],
            [each.p50_ms * 1e3 for each in rounds],
            [each.p99_ms * 1e3 for each in rounds],
            [each.server_us for each in rounds],
            [each.resident_mib for each in rounds],
        ]
        lines.append((count, name, *(spread(column) for column in columns)))
    header = ("callers", "side", "answers/s", "p50, us", "p99, us", "processor, us an answer", "resident, MiB")
    print(tables.rows(header, lines))


def spread(figures: list[float]) -> str:
    """The median, and the extremes."""
    return f"{statistics.median(figures):,.0f} ({min(figures):,.0f}-{max(figures):,.0f})"


if __name__ == "__main__":
    main()
