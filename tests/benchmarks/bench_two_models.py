"""Two models of torch in one server: what a lone caller of one waits while the other is only there, and both at once.

    python tests/benchmarks/bench_two_models.py [--before PYTHON] [--precision bf16] [--seconds 3] [--rounds 3]

Both are `minilm`, registered twice, with the same precision, so that both run with torch.  Threads that help a run of
one are in the way of the other's: each has answered calls before anything is measured.  `--before` is the interpreter
of another checkout (`…/.venv/bin/python`), which takes turns with this one on the same data, in the same order.

The first run measures the plans of both models, for some minutes; later ones remember.  Then half a minute a round and
side.  Prints Markdown.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.serving import arguments, headrace as servers, tables
from tests.benchmarks.serving.load import Found, Load
from tests.benchmarks.serving.places import BUILD
from tests.benchmarks.serving.plan_table import summary
from tests.benchmarks.serving.quiet import MAX_OTHERS_CORES, Others
from tests.benchmarks.serving.servers import MODEL_INFER, process
from tests.benchmarks.serving.workloads import files_of, open_inference, with_rows, workload

NAMES = ("minilm-a", "minilm-b")


@dataclasses.dataclass(frozen=True, slots=True)
class Round:
    """One server: each model alone, and both at once, in the order of NAMES."""

    lone: tuple[Found, ...]
    both: tuple[Found, ...]


@contextmanager
def serve(python: str, precision: str) -> Iterator[str]:
    """A server with both models, whose plans are chosen and run; its target."""
    data = BUILD / "two-models" / precision
    data.mkdir(parents=True, exist_ok=True)
    rows = with_rows(workload("minilm"))
    chosen = ("telemetry.metrics_port=-1", servers.NATIVE_DOOR, f"inference.default_precision={precision}")
    settings = [part for assignment in chosen for part in ("--set", assignment)]
    models = [part for name in NAMES for part in ("--model", f"{name}={rows}")]
    command = (python, "-m", "headrace_server", "serve", "--data", data, "--port", "0", *models, *settings)
    with tempfile.TemporaryDirectory() as folder, process(command, Path(folder)) as (server, log):
        line = servers.wait_for(log, lambda event: event["event"] == "house.open", server.poll, 60)
        target = f"127.0.0.1:{line['port']}"
        for name in NAMES:
            print(summary(servers.best_plan(target, name)), file=sys.stderr, flush=True)
        yield target


def one_server(python: str, precision: str, seconds: float) -> Round:
    """One round of one side."""
    requests = workload("minilm").requests
    with serve(python, precision) as target, tempfile.TemporaryDirectory() as folder:
        loads = []
        for name in NAMES:
            place = Path(folder) / name
            place.mkdir()
            bodies = files_of([open_inference(name, request) for request in requests], place)
            loads.append(Load(target=target, method=MODEL_INFER, bodies=bodies, seconds=seconds))
        for load in loads:  # from now on both have whatever they keep
            dataclasses.replace(load, seconds=0.5).run()
        lone = tuple(load.run() for load in loads)
        with ThreadPoolExecutor(len(loads)) as callers:
            both = tuple(callers.map(Load.run, loads))
    return Round(lone, both)


def main() -> None:
    """Measure and print."""
    parser = arguments.parser(__doc__, seconds=3, rounds=3)
    parser.add_argument("--before", metavar="PYTHON", help="the interpreter of another checkout")
    parser.add_argument("--precision", default="bf16", help="what both models run in (default: %(default)s)")
    asked = parser.parse_args()
    sides = {"before": asked.before} if asked.before else {}
    sides["as it is"] = sys.executable
    with serve(sys.executable, asked.precision):
        pass  # all plans are known
    before = Others.now()
    rounds: dict[str, list[Round]] = {side: [] for side in sides}
    for _ in range(asked.rounds):
        for side, python in sides.items():
            rounds[side].append(one_server(python, asked.precision, asked.seconds))
    is_disturbed = Others.now().cores_since(before) > MAX_OTHERS_CORES
    print(f"{tables.machine()}\n{asked.rounds} rounds, {asked.precision}, one caller of each model\n")
    header = ("side", "model", "alone, p50, ms", "p99, ms", "both at once, p50, ms", "p99, ms", "answers/s", "")
    lines = [
        _line(side, index, rounds[side], is_disturbed=is_disturbed) for side in sides for index in range(len(NAMES))
    ]
    print(tables.rows(header, lines))


def _line(side: str, index: int, rounds: list[Round], *, is_disturbed: bool) -> tuple[object, ...]:
    lone, both = [one.lone[index] for one in rounds], [one.both[index] for one in rounds]
    return (
        side,
        NAMES[index],
        tables.spread([found.latency.p50 for found in lone], 2),
        tables.spread([found.latency.p99 for found in lone], 2),
        tables.spread([found.latency.p50 for found in both], 2),
        tables.spread([found.latency.p99 for found in both], 2),
        tables.spread([found.answers_per_second for found in both], 0),
        "disturbed, no result" if is_disturbed else "",
    )


if __name__ == "__main__":
    main()
