"""What callers feel of new versions: p99 while a model's version is replaced 20 times, beside p99 without.

    python tests/benchmarks/bench_swaps.py [--models mlp,minilm] [--callers 8] [--seconds 20] [--rounds 3] [--swaps 20]

Two versions take turns: the other one is loaded and warmed up, the alias `default` is pointed to it, and the old one is
unloaded when it has answered what it took.  Steady and swapping runs alternate on one server.  No call may fail.
Loading uses the same two cores as serving, and is part of what callers feel.

Takes about 5 minutes as it stands.  Prints Markdown.
"""

import asyncio
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import headrace
from tests.benchmarks.serving import arguments, headrace as servers, tables
from tests.benchmarks.serving.load import Found, Load
from tests.benchmarks.serving.quiet import MAX_OTHERS_CORES, Others
from tests.benchmarks.serving.rounds import MOST_CONNECTIONS
from tests.benchmarks.serving.servers import Endpoint, check
from tests.benchmarks.serving.workloads import Workload, workload


async def swap(client: headrace.Client, model: str, version: int) -> None:
    """Let version 1 or 2 take over from the other."""
    await client.load_model(f"models/{model}/versions/{version}")
    await client.assign_alias(model, "default", version)
    await client.unload_model(f"models/{model}/versions/{3 - version}")


async def under_swaps(endpoint: Endpoint, model: str, load: Load, num_swaps: int) -> Found:
    """Load while versions are replaced at even distances, an even number of times."""
    async with headrace.Client(endpoint.target, timeout_seconds=120) as client:
        loaded = asyncio.create_task(asyncio.to_thread(load.run))
        await asyncio.sleep(load.warm_up_seconds)
        loop = asyncio.get_running_loop()
        begin = loop.time()
        for number in range(num_swaps):
            await swap(client, model, 2 - number % 2)
            await asyncio.sleep(max(0.0, begin + (number + 1) * load.seconds / num_swaps - loop.time()))
        return await loaded


async def register_again(endpoint: Endpoint, each: Workload) -> None:
    """The same program as version 2, while version 1 goes on answering."""
    async with headrace.Client(endpoint.target) as client:
        await client.upload_model(each.name, each.onnx)
        await client.assign_alias(each.name, "default", 1)


def main() -> None:
    """Measure and print."""
    parser = arguments.parser(__doc__, seconds=20, rounds=3)
    parser.set_defaults(models=["mlp", "minilm"], callers=[8])
    parser.add_argument("--swaps", type=int, default=20, help="in each swapping run, rounded up to an even number")
    asked = parser.parse_args()
    num_swaps = asked.swaps + asked.swaps % 2
    lines: list[tuple[object, ...]] = []
    for each in map(workload, asked.models):
        with tempfile.TemporaryDirectory() as folder, servers.NATIVE.start(each, Path(folder)) as endpoint:
            check(endpoint, each)
            asyncio.run(register_again(endpoint, each))
            for callers in asked.callers:
                load = Load(
                    target=endpoint.target,
                    method=endpoint.method,
                    bodies=endpoint.bodies,
                    callers=callers,
                    connections=min(callers, MOST_CONNECTIONS),
                    seconds=asked.seconds,
                )
                steady, swapping, disturbed = [], [], 0
                for _ in range(asked.rounds):
                    before = Others.now()
                    steady.append(load.run())
                    swapping.append(asyncio.run(under_swaps(endpoint, each.name, load, num_swaps)))
                    disturbed += Others.now().cores_since(before) > MAX_OTHERS_CORES
                lines.append(_line(each.name, callers, steady, swapping, disturbed))
    print(f"{tables.machine()}\n{asked.rounds} rounds of {asked.seconds:g} s, {num_swaps} swaps in each swapping run\n")
    header = ("model", "callers", "steady p99, ms", "p99 over swaps, ms", "ratio", "most, ms", "failed calls", "")
    print(tables.rows(header, lines))


def _line(model: str, callers: int, steady: list[Found], swapping: list[Found], disturbed: int) -> tuple[object, ...]:
    ratios = [one.latency.p99 / other.latency.p99 for one, other in zip(swapping, steady, strict=True)]
    failed = sum(sum(found.total.errors.values()) for found in (*steady, *swapping))
    return (
        model,
        callers,
        tables.spread([found.latency.p99 for found in steady], 2),
        tables.spread([found.latency.p99 for found in swapping], 2),
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
        f"{max(found.latency.max for found in swapping):.1f}",
        failed,
        f"{disturbed} rounds disturbed" if disturbed else "",
    )


if __name__ == "__main__":
    main()
