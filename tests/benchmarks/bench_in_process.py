"""Headrace beside ONNX Runtime called in a process, without any server.

    python tests/benchmarks/bench_in_process.py [--models minilm] [--callers 64] [--seconds 12] [--rounds 5]

In turn: a closed loop against the server with its native door, and ONNX Runtime called by as many callers as there
are threads, in the batches that serve best (serving/limits.py).  With many callers a batch takes long, and a window
ends somewhere in it: windows of 3 s are wrong by some hundredths, those of 12 s by one.

Takes about five minutes as it stands.  Prints Markdown; every single measurement goes to standard error.
"""

import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.serving import arguments, headrace, limits, tables
from tests.benchmarks.serving.limits import Run
from tests.benchmarks.serving.quiet import MAX_OTHERS_CORES
from tests.benchmarks.serving.rounds import Measured, under_load
from tests.benchmarks.serving.servers import check
from tests.benchmarks.serving.workloads import Workload, workload


def turn(model: Workload, callers: int, seconds: float) -> tuple[Measured, Run]:
    """The server, then the runtime alone."""
    with tempfile.TemporaryDirectory() as folder, headrace.NATIVE.start(model, Path(folder)) as endpoint:
        check(endpoint, model)
        under_load(endpoint, callers, 1, attempts=1)
        served = under_load(endpoint, callers, seconds)
    with tempfile.TemporaryDirectory() as folder:
        alone = limits.in_process(model, callers, seconds, Path(folder))
    print(model.name, callers, served, alone, file=sys.stderr, flush=True)
    return served, alone


def main() -> None:
    """Measure and print."""
    parser = arguments.parser(__doc__, seconds=12, rounds=5)
    parser.set_defaults(models=["minilm"], callers=[64])
    asked = parser.parse_args()
    lines = []
    for model in map(workload, asked.models):
        for callers in asked.callers:
            turns = [turn(model, callers, asked.seconds) for _ in range(asked.rounds)]
            good = [each for each in turns if each[0].others_cores <= MAX_OTHERS_CORES]
            columns = [
                ([served.answers_per_second for served, _ in good or turns], 0),
                ([alone.rows_per_second for _, alone in good or turns], 0),
                ([served.answers_per_second / alone.rows_per_second for served, alone in good or turns], 2),
                ([served.p50_ms for served, _ in good or turns], 1),
                ([served.p99_ms / served.p50_ms for served, _ in good or turns], 2),
            ]
            how = statistics.mode(str(alone) for _, alone in turns)
            figures = [tables.spread(figures, digits) for figures, digits in columns]
            lines.append((model.name, callers, *figures, how, f"{len(good)} of {len(turns)}"))
    print(f"{tables.machine()}\n{asked.rounds} turns of {asked.seconds:g} s; medians (extremes)\n")
    header = ("Headrace, answers/s", "in a process, rows/s", "Headrace / in a process", "p50, ms", "p99 / p50")
    print(tables.rows(("model", "callers", *header, "in a process", "undisturbed"), lines))


if __name__ == "__main__":
    main()
