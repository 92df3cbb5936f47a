"""What ten thousand idle connections cost: the server's memory for each, and a lone caller's wait beside them.

    python tests/benchmarks/bench_idle.py [--connections 10000] [--seconds 3] [--rounds 5]

In every round one caller of `mlp` in a closed loop is measured without company, then beside the crowd, then without it
again, on the same server; so what drifts shows as a difference between the first and the last.  The crowd are bare
connections of HTTP/2 that were welcomed and answer pings.  Memory is that of the server's process, before the first
crowd and with each; what stays after a crowd has left is memory that the next one uses again.

Both this program and the server take all open files that they may; where that is too few, the crowd is smaller, and the
first line says so.  Takes about a minute and a half as it stands.  Prints Markdown.
"""

import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import psutil

from tests.benchmarks.serving import arguments, headrace, tables
from tests.benchmarks.serving.rounds import Measured, under_load
from tests.benchmarks.serving.servers import Endpoint, check
from tests.benchmarks.serving.workloads import workload
from tests.doubles.idle_connections import IdleConnections, most_connections

MLP = workload("mlp")
MOMENTS = ("alone", "beside the crowd", "alone again")


def resident_bytes(endpoint: Endpoint) -> int:
    """Of the server's process."""
    return int(psutil.Process(endpoint.pid).memory_info().rss)


def one_round(endpoint: Endpoint, count: int, seconds: float) -> tuple[list[Measured], int]:
    """The lone caller at each moment, and the server's resident bytes with the crowd."""
    port = int(endpoint.target.rpartition(":")[2])
    alone = under_load(endpoint, 1, seconds)
    with IdleConnections(port, count) as crowd:
        resident = resident_bytes(endpoint)
        beside = under_load(endpoint, 1, seconds)
        assert crowd.num_open() == count, f"the server hung up on {count - crowd.num_open()}"
    return [alone, beside, under_load(endpoint, 1, seconds)], resident


def main() -> None:
    """Measure and print."""
    parser = arguments.parser(__doc__, seconds=3, rounds=5)
    parser.add_argument("--connections", type=int, default=10_000)
    asked = parser.parse_args()
    count = min(asked.connections, most_connections())
    limited = (
        "" if count == asked.connections else f" (the limit of open files allows no more of {asked.connections:,})"
    )
    with tempfile.TemporaryDirectory() as folder, headrace.NATIVE.start(MLP, Path(folder)) as endpoint:
        check(endpoint, MLP)
        under_load(endpoint, 1, asked.seconds)
        before = resident_bytes(endpoint)
        rounds = [one_round(endpoint, count, asked.seconds) for _ in range(asked.rounds)]

    print(f"{tables.machine()}\n{asked.rounds} rounds of {asked.seconds:g} s; {count:,} idle connections{limited}\n")
    moments = list(zip(*(measured for measured, _ in rounds), strict=True))
    lines = [
        (
            moment,
            tables.spread([each.answers_per_second for each in found]),
            tables.spread([each.p50_ms for each in found], 3),
            tables.spread([each.p99_ms for each in found], 3),
            tables.spread([each.server_us for each in found]),
            f"{sum(not each.is_good for each in found)} of {len(found)} rounds disturbed",
        )
        for moment, found in zip(MOMENTS, moments, strict=True)
    ]
    print(tables.rows(("one caller", "answers/s", "p50, ms", "p99, ms", "server, us an answer", ""), lines))
    ratios = [beside.p50_ms / statistics.mean((first.p50_ms, last.p50_ms)) for (first, beside, last), _ in rounds]
    print(f"\np50 beside the crowd to p50 without it: {tables.spread(ratios, 3)}")
    each = [(resident - before) / count / 1024 for _, resident in rounds]
    print(
        f"The server's resident memory: {before / (1 << 20):.0f} MiB before, {tables.spread(each, 1)} KiB a connection"
    )


if __name__ == "__main__":
    main()
