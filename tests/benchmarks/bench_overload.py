"""What is left of a server's goodput when it is asked for more than it can do: half of its capacity to three times it.

    python tests/benchmarks/bench_overload.py [--model minilm] [--seconds 5] [--rounds 3] [--sides headrace]
                                              [--svg tests/benchmarks/overload.svg]

Capacity is what a closed loop of 64 callers gets.  Then calls come at random moments (a Poisson process) at multiples
of it, each with a deadline of 50 ms; goodput is the answers within 50 ms of the moment at which their call was due, so
that nothing is gained by holding callers up.  The last line is the promise: the least goodput beyond capacity, as a
share of the greatest anywhere.  A round goes through all multiples; one that other programs disturbed is marked.  The
generator shares the machine's cores: with `mlp` it needs a good part of them itself, which its column shows.

Takes about 3 minutes a side and model as it stands.  Prints Markdown.
"""

import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.serving import arguments, curve, headrace, kserve, mlserver, tables, torchserve, triton
from tests.benchmarks.serving.load import Found, Load
from tests.benchmarks.serving.quiet import MAX_OTHERS_CORES, Others
from tests.benchmarks.serving.rounds import MOST_CONNECTIONS, under_load
from tests.benchmarks.serving.servers import Endpoint, Side, check
from tests.benchmarks.serving.workloads import workload

SIDES = (headrace.NATIVE, triton.side(2), torchserve.SIDE, mlserver.SIDE, kserve.SIDE)
MULTIPLES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
DEADLINE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Point:
    """One multiple, once."""

    multiple: float
    found: Found
    was_disturbed: bool

    @property
    def goodput(self) -> float:
        """Answers in time, a second."""
        assert self.found.paced is not None
        return self.found.paced.good_per_second


def at(endpoint: Endpoint, multiple: float, capacity: float, seconds: float) -> Point:
    """Ask for a multiple of its capacity."""
    load = Load(
        target=endpoint.target,
        method=endpoint.method,
        bodies=endpoint.bodies,
        connections=MOST_CONNECTIONS,
        rate=multiple * capacity,
        seconds=seconds,
        deadline_seconds=DEADLINE_SECONDS,
    )
    before = Others.now()
    found = load.run()
    return Point(multiple, found, Others.now().cores_since(before) > MAX_OTHERS_CORES)


def measure(side: Side, model: str, rounds: int, seconds: float) -> tuple[list[float], list[Point]]:
    """Capacities and points of all rounds; the server is started anew for each round."""
    side.prepare()
    capacities, points = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder, side.start(workload(model), Path(folder)) as endpoint:
            check(endpoint, workload(model))
            capacity = under_load(endpoint, 64, seconds).answers_per_second
            capacities.append(capacity)
            points += [at(endpoint, multiple, capacity, seconds) for multiple in MULTIPLES]
    return capacities, points


def table(points: list[Point]) -> str:
    """A line a multiple."""
    lines = []
    for multiple in MULTIPLES:
        here = [point for point in points if point.multiple == multiple]
        found = [point.found for point in here]
        reasons: dict[str, int] = {}
        for each in found:
            for reason, count in each.errors.items():
                reasons[reason] = reasons.get(reason, 0) + count
        paced = [each.paced for each in found if each.paced is not None]
        lines.append(
            (
                f"{multiple:g}",
                tables.spread([each.due / one.seconds for each, one in zip(paced, found, strict=True)]),
                tables.spread([point.goodput for point in here]),
                tables.spread([each.latency.p50 for each in found], 1),
                tables.spread([each.latency.p99 for each in found], 1),
                ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items())),
                f"{max(each.own.cores for each in found):.2f}",
                f"{max(each.late_start.p99 for each in paced):.1f}",
                f"{sum(point.was_disturbed for point in here)} rounds disturbed" if any(map(_disturbed, here)) else "",
            )
        )
    header = ("times capacity", "calls/s", "goodput/s", "p50, ms", "p99, ms", "refused", "generator, cores")
    return tables.rows((*header, "calls late by, p99 ms", ""), lines)


def _disturbed(point: Point) -> bool:
    return point.was_disturbed


def medians(points: list[Point]) -> dict[float, float]:
    """The goodput at each multiple."""
    return {
        multiple: statistics.median(point.goodput for point in points if point.multiple == multiple)
        for multiple in MULTIPLES
    }


def main() -> None:
    """Measure, print and draw."""
    parser = arguments.parser(__doc__, seconds=5, rounds=3)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--sides", default="headrace", help="parts of their names (default: %(default)s)")
    parser.add_argument("--svg", type=Path, help="draw the curves into this file")
    asked = parser.parse_args()
    curves: dict[str, list[tuple[float, float]]] = {}
    print(f"{tables.machine()}\n{asked.model}, {asked.rounds} rounds of {asked.seconds:g} s, deadlines of 50 ms")
    for side in arguments.choose(SIDES, asked.sides):
        capacities, points = measure(side, asked.model, asked.rounds, asked.seconds)
        goodput = medians(points)
        peak, beyond = max(goodput.values()), min(rate for multiple, rate in goodput.items() if multiple > 1)
        print(f"\n{side.name}: capacity {tables.spread(capacities)} answers/s\n\n{table(points)}\n")
        print(f"{side.name}: the least goodput beyond capacity is {beyond / max(peak, 1e-9):.2f} of the peak")
        curves[side.name] = list(goodput.items())
    if asked.svg is not None:
        title = f"{asked.model}: answers within 50 ms, by how much is asked for"
        asked.svg.write_text(curve.svg(title, "calls made, in multiples of capacity", "goodput, answers/s", curves))


if __name__ == "__main__":
    main()
