"""Predictions beside a training on the same machine: their latency, and the speed that the training keeps.

    python tests/benchmarks/bench_beside.py [--model minilm] [--seconds 5] [--rounds 3] [--modes alone,YIELD]
        [--loads 0.1,0.8] [--capacity 40]

Capacity is what a closed loop of 8 callers gets alone.  Then calls come at random moments at 10, 50 and 80 % of it:
alone, beside a training that takes what it can get (EXCLUSIVE), and beside one that gives way (YIELD).  The training is
a small convolutional network on as many threads as there are processors; its speed is told as a share of what it has
with no predictions beside it.

Each figure is printed when it is there, and a table of all of them in Markdown at the end.  One mode takes about a
minute a round; runs that are to be compared, but not made in one go, need the same `--capacity`.
"""

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

import headrace
from tests.benchmarks.serving import arguments, tables
from tests.benchmarks.serving.headrace import serve
from tests.benchmarks.serving.load import Found, Load
from tests.benchmarks.serving.rounds import MOST_CONNECTIONS, under_load
from tests.benchmarks.serving.servers import Endpoint, check
from tests.benchmarks.serving.workloads import workload

SHARES = (0.1, 0.5, 0.8)
BATCH_SIZE = 32
"""So that a step takes a few hundredths of a second, and a share of the speed can be told."""
MODES: dict[str, "headrace.Placement.Mode.ValueType | None"] = {
    "alone": None,
    "EXCLUSIVE": headrace.Placement.MODE_EXCLUSIVE,
    "YIELD": headrace.Placement.MODE_YIELD,
}


@dataclass(frozen=True, slots=True)
class Point:
    """One load, once."""

    mode: str
    share: float
    found: Found
    kept: float | None
    """The training's speed, as a share of what it has alone; None without one."""


async def speed(run: headrace.TrainingRun, seconds: float) -> float:
    """Steps a second of a running training, over so long."""
    loop = asyncio.get_running_loop()
    before = (await run.refresh()).latest_step.step
    began_at = loop.time()
    await asyncio.sleep(seconds)
    return ((await run.refresh()).latest_step.step - before) / (loop.time() - began_at)


@asynccontextmanager
async def training(
    client: headrace.Client, mode: "headrace.Placement.Mode.ValueType"
) -> AsyncIterator[headrace.TrainingRun]:
    """A training under way; killed at the end of the block."""
    run = await client.start_training(
        dataset="noise",
        model="noise",
        trainer=headrace.ImageClassificationTrainer(),
        epochs=1_000_000,
        batch_size=BATCH_SIZE,
        placement=headrace.Placement(mode=mode),
    )
    try:
        async for event in run.follow():
            if event.kind == "step_completed":
                break
        yield run
    finally:
        await run.cancel(kill=True)
        with contextlib.suppress(headrace.TrainingCancelled):
            await run.wait()


async def one_round(endpoint: Endpoint, asked: argparse.Namespace) -> list[Point]:
    """All modes and shares that are asked for, once."""
    seconds = asked.seconds
    capacity = asked.capacity
    if not capacity:
        found = await asyncio.to_thread(under_load, endpoint, 8, seconds)
        if not (capacity := found.answers_per_second):
            sys.exit(f"nobody was answered: {found.errors}")
    print(f"capacity {capacity:.1f} answers a second", flush=True)
    points: list[Point] = []

    def note(point: Point) -> None:
        latency, kept = point.found.latency, "" if point.kept is None else f", {point.kept:.0%} of its speed kept"
        print(f"{point.share:.0%} {point.mode}: p50 {latency.p50:.1f} ms, p99 {latency.p99:.1f} ms{kept}", flush=True)
        points.append(point)

    async with headrace.Client(endpoint.target) as client:
        rows: dict[str, np.ndarray] = {
            "images": np.random.default_rng(1).integers(0, 256, (2048, 16, 16)).astype(np.uint8),
            "labels": np.arange(2048) % 4,
        }
        await client.upload_dataset("noise", rows)
        for mode in asked.modes:
            placement = MODES[mode]
            if placement is None:
                for share in asked.loads:
                    note(Point(mode, share, await load(endpoint, share * capacity, seconds), None))
                continue
            async with training(client, placement) as run:
                own = await speed(run, seconds)
                print(f"{mode}: {own:.1f} steps a second alone", flush=True)
                for share in asked.loads:
                    async with asyncio.TaskGroup() as tasks:
                        loading = tasks.create_task(load(endpoint, share * capacity, seconds))
                        kept = await speed(run, seconds)
                    note(Point(mode, share, loading.result(), kept / max(own, 1e-9)))
    return points


async def load(endpoint: Endpoint, rate: float, seconds: float) -> Found:
    """Calls at random moments."""
    asked = Load(
        target=endpoint.target,
        method=endpoint.method,
        bodies=endpoint.bodies,
        connections=MOST_CONNECTIONS,
        rate=rate,
        seconds=seconds,
        warm_up_seconds=0.5,
    )
    return await asyncio.to_thread(asked.run)


def table(points: list[Point]) -> str:
    """A line for each mode and share."""
    lines = []
    for share in sorted({point.share for point in points}):
        for mode in MODES:
            here = [point for point in points if (point.mode, point.share) == (mode, share)]
            if not here:
                continue
            kept = [point.kept for point in here if point.kept is not None]
            lines.append(
                (
                    f"{share:.0%}",
                    mode,
                    tables.spread([point.found.latency.p50 for point in here], 1),
                    tables.spread([point.found.latency.p99 for point in here], 1),
                    f"{statistics.median(kept):.0%}" if kept else "",
                    str(sum(sum(point.found.errors.values()) for point in here)),
                )
            )
    return tables.rows(("load", "training", "p50, ms", "p99, ms", "training's speed kept", "errors"), lines)


def main() -> None:
    """Measure and print."""
    parser = arguments.parser(__doc__, seconds=5, rounds=3)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--modes", type=lambda text: text.split(","), default=list(MODES), metavar="A,B")
    parser.add_argument(
        "--loads", type=lambda text: [float(part) for part in text.split(",")], default=list(SHARES), metavar="0.1,0.8"
    )
    parser.add_argument("--capacity", type=float, default=0, help="answers a second; measured when it is not given")
    asked = parser.parse_args()
    print(f"{tables.machine()}\n{asked.model}, {asked.rounds} rounds of {asked.seconds:g} s")
    points: list[Point] = []
    model = workload(asked.model)
    for _ in range(asked.rounds):
        with tempfile.TemporaryDirectory() as folder, serve(model, Path(folder)) as endpoint:
            check(endpoint, model)  # and wait until it is loaded
            points += asyncio.run(one_round(endpoint, asked))
    print(f"\n{table(points)}")


if __name__ == "__main__":
    main()
