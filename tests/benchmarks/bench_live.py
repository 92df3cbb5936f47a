"""Predictions from a job that is still training: what a call costs, and how far its checkpoint is behind the job.

    python tests/benchmarks/bench_live.py [--seconds 20] [--rounds 3] [--every 1]

One job trains on images of noise and saves a checkpoint every so many seconds; one caller asks
`trainingJobs/live@latest` all the time.  Every answer names its step and its checkpoint, and says how many steps and
seconds it is behind what the job had reported by then.  The first answer waits for the job's program to be exported, in
a process of its own; from then on a new checkpoint is loaded behind the one that answers.  Beside it the steps a second
that the job makes while it is asked, and in the same time while it is not: it shares two cores with server and caller,
and gives way to predictions.

Takes about 3 minutes as it stands.  Prints Markdown.
"""

import argparse
import asyncio
import dataclasses
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

import headrace
from tests.benchmarks.serving import tables
from tests.benchmarks.serving.quiet import Others
from tests.doubles.server_process import running

JOB = "live"
ROWS = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Round:
    """One job, asked for a while."""

    first_seconds: float
    """From the first checkpoint to the first answer."""
    latencies_ms: list[float]
    steps_behind: list[int]
    seconds_behind: list[float]
    checkpoints: int
    """Different ones that answered."""
    asked_steps_per_second: float
    left_alone_steps_per_second: float
    others_cores: float
    """What programs that are not ours had while the job was asked, and while it was not."""


async def measure(folder: Path, seconds: float, every: float) -> Round:
    """One server, one job."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (ROWS, 8, 8)).astype(np.uint8)
    async with running(folder / "data") as (server, _):
        target = f"127.0.0.1:{(await server.logged('house.open'))['port']}"
        async with headrace.Client(target, timeout_seconds=120) as client:
            await client.upload_dataset("noise", {"images": images, "labels": np.arange(ROWS) % 4})
            run = await client.start_training(
                job_id=JOB,
                dataset="datasets/noise",
                model="models/noise",
                trainer=headrace.ImageClassificationTrainer(),
                epochs=100_000,
                checkpoint_period=timedelta(seconds=every),
            )
            async for event in run.follow():
                if event.kind == "checkpoint_saved":
                    break
            row = images[:1]
            began_at = time.perf_counter()
            await client.predict(f"trainingJobs/{JOB}@latest", row)
            first = time.perf_counter() - began_at
            answers, latencies, others = [], [], Others.now()
            step_before, began_at = (await run.refresh()).latest_step.step, time.perf_counter()
            while (elapsed := time.perf_counter() - began_at) < seconds:
                asked_at = time.perf_counter()
                answers.append(await client.predict(f"trainingJobs/{JOB}@latest", row))
                latencies.append((time.perf_counter() - asked_at) * 1000)
            asked_rate = ((await run.refresh()).latest_step.step - step_before) / elapsed
            step_before, began_at = (await run.refresh()).latest_step.step, time.perf_counter()
            await asyncio.sleep(seconds)
            alone_rate = ((await run.refresh()).latest_step.step - step_before) / (time.perf_counter() - began_at)
            others_cores = Others.now().cores_since(others)  # before any process of ours has ended
            cancelled = await run.cancel(kill=True)
            async for _ in run.follow(cancelled.latest_sequence):
                pass  # until it is over: no worker is left behind
    assert all(answer.staleness is not None and answer.provenance.checkpoint_digest for answer in answers)
    return Round(
        first,
        latencies,
        [answer.staleness.steps for answer in answers if answer.staleness is not None],
        [answer.staleness.age_seconds for answer in answers if answer.staleness is not None],
        len({answer.provenance.training_step for answer in answers}),
        asked_rate,
        alone_rate,
        others_cores,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=float, default=1, help="seconds between two checkpoints")
    asked = parser.parse_args()
    rounds = []
    for _ in range(asked.rounds):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            rounds.append(asyncio.run(measure(Path(folder), asked.seconds, asked.every)))
    cores = max(one.others_cores for one in rounds)
    print(f"{tables.machine()}\n{asked.rounds} rounds of {asked.seconds:g} s; others had at most {cores:.2f} cores\n")
    print(tables.rows(("figure", "median of the rounds (extremes)"), _lines(rounds)))


def _lines(rounds: list[Round]) -> list[tuple[object, ...]]:
    def each(name: str, figures: list[float], digits: int) -> tuple[object, ...]:
        return name, tables.spread(figures, digits)

    def at(values: list[float], share: float) -> float:
        return float(np.quantile(values, share))

    return [
        each("first answer, program exported, s", [one.first_seconds for one in rounds], 2),
        each("p50 of a call, ms", [at(one.latencies_ms, 0.5) for one in rounds], 2),
        each("p99 of a call, ms", [at(one.latencies_ms, 0.99) for one in rounds], 2),
        each("slowest call, ms", [max(one.latencies_ms) for one in rounds], 1),
        each("calls", [float(len(one.latencies_ms)) for one in rounds], 0),
        each("checkpoints that answered", [float(one.checkpoints) for one in rounds], 0),
        each("steps behind the job, median", [float(statistics.median(one.steps_behind)) for one in rounds], 0),
        each("steps behind the job, most", [float(max(one.steps_behind)) for one in rounds], 0),
        each("seconds behind, median", [statistics.median(one.seconds_behind) for one in rounds], 2),
        each("seconds behind, most", [max(one.seconds_behind) for one in rounds], 2),
        each("steps/s of the job while it is asked", [one.asked_steps_per_second for one in rounds], 0),
        each("steps/s of the job left alone", [one.left_alone_steps_per_second for one in rounds], 0),
    ]


if __name__ == "__main__":
    main()
