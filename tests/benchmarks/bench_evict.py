"""A model that was evicted and comes back when it is asked: what its caller waits, and what the neighbours feel.

    python tests/benchmarks/bench_evict.py [--models minilm] [--callers 8] [--seconds 10] [--rounds 3]

The server holds two versions.  One is the neighbour (mlp, pinned, under load all the time); two models of the same
program take turns in the other place, so that every first call to one of them evicts the other and loads the one that
is asked.  What a caller waits then is compared with the first call to that model after the server has started, and the
p99 of the neighbour's callers with and without that going on: loading uses the same cores.  So do the runs that answer,
whether anything was loaded for them or not: in each round a server that has room for all three is asked as often.  No
call may fail.

Takes about 2.5 minutes as it stands.  Prints Markdown.
"""

import asyncio
import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import headrace
from tests.benchmarks.serving import arguments, headrace as servers, tables
from tests.benchmarks.serving.load import Found, Load
from tests.benchmarks.serving.quiet import MAX_OTHERS_CORES, Others
from tests.benchmarks.serving.rounds import MOST_CONNECTIONS
from tests.benchmarks.serving.servers import Endpoint, check
from tests.benchmarks.serving.workloads import Workload, workload

PAUSE_SECONDS = 0.5
"""Between one return and the next."""


@dataclasses.dataclass(frozen=True, slots=True)
class Round:
    """One server."""

    cold_ms: float
    returns_ms: list[float]
    steady: Found
    beside: Found

    @property
    def ratio(self) -> float:
        """The neighbour's p99 meanwhile, to that of a neighbour that is alone."""
        return self.beside.latency.p99 / self.steady.latency.p99


async def ask(client: headrace.Client, model: str, each: Workload) -> float:
    """Milliseconds until a right answer."""
    began_at = time.perf_counter()
    prediction = await client.predict(f"models/{model}", dict(each.requests[0]))
    took = (time.perf_counter() - began_at) * 1000
    assert servers.is_close(prediction.output.ravel(), each.answers[0].ravel())
    return took


async def measure(endpoint: Endpoint, each: Workload, load: Load) -> Round:
    """Evict and return while the neighbour is under load."""
    twins = (f"{each.name}-a", f"{each.name}-b")
    async with headrace.Client(endpoint.target, timeout_seconds=120) as client:
        await client.update_model("mlp", is_pinned=True)
        for twin in twins:
            await client.upload_model(twin, each.onnx)
        cold = await ask(client, twins[0], each)
        steady = await asyncio.to_thread(load.run)
        loaded = asyncio.create_task(asyncio.to_thread(load.run))
        await asyncio.sleep(load.warm_up_seconds)
        returns: list[float] = []
        until = time.perf_counter() + load.seconds - 1
        while time.perf_counter() < until:
            returns.append(await ask(client, twins[(len(returns) + 1) % 2], each))
            await asyncio.sleep(PAUSE_SECONDS)
        return Round(cold, returns, steady, await loaded)


def one_server(each: Workload, callers: int, seconds: float, max_loaded: int) -> Round:
    """One round, on a server of its own; with room for three, nobody is evicted."""
    neighbour = workload("mlp")
    settings = (servers.NATIVE_DOOR, f"inference.max_loaded_versions={max_loaded}")
    with tempfile.TemporaryDirectory() as folder, servers.serve(neighbour, Path(folder), *settings) as endpoint:
        check(endpoint, neighbour)
        load = Load(
            target=endpoint.target,
            method=endpoint.method,
            bodies=endpoint.bodies,
            callers=callers,
            connections=min(callers, MOST_CONNECTIONS),
            seconds=seconds,
        )
        return asyncio.run(measure(endpoint, each, load))


def main() -> None:
    """Measure and print."""
    parser = arguments.parser(__doc__, seconds=10, rounds=3)
    parser.set_defaults(models=["minilm"], callers=[8])
    asked = parser.parse_args()
    lines = []
    for each in map(workload, asked.models):
        for callers in asked.callers:
            before = Others.now()
            rounds, roomy = [], []
            for _ in range(asked.rounds):
                rounds.append(one_server(each, callers, asked.seconds, max_loaded=2))
                roomy.append(one_server(each, callers, asked.seconds, max_loaded=3))
            is_disturbed = Others.now().cores_since(before) > MAX_OTHERS_CORES
            lines.append(_line(each.name, callers, rounds, roomy, is_disturbed=is_disturbed))
    print(f"{tables.machine()}\n{asked.rounds} rounds; the neighbour is mlp with so many callers\n")
    header = ("model", "callers", "first call, ms", "call that brings it back, ms", "slowest, ms", "returns",
              "neighbour's p99, steady, ms", "p99 meanwhile, ms", "ratio", "ratio where all stay loaded",
              "failed calls", "")  # fmt: skip
    print(tables.rows(header, lines))


def _line(
    model: str, callers: int, rounds: list[Round], roomy: list[Round], *, is_disturbed: bool
) -> tuple[object, ...]:
    returns = [took for one in rounds for took in one.returns_ms]
    return (
        model,
        callers,
        tables.spread([one.cold_ms for one in rounds], 0),
        tables.spread([statistics.median(one.returns_ms) for one in rounds], 0),
        f"{max(returns):.0f}",
        len(returns),
        tables.spread([one.steady.latency.p99 for one in rounds], 2),
        tables.spread([one.beside.latency.p99 for one in rounds], 2),
        tables.spread([one.ratio for one in rounds], 2),
        tables.spread([one.ratio for one in roomy], 2),
        sum(sum(found.total.errors.values()) for one in (*rounds, *roomy) for found in (one.steady, one.beside)),
        "disturbed, no result" if is_disturbed else "",
    )


if __name__ == "__main__":
    main()
