"""Measures the journal: entries appended a second, and the time from an append until a reader has it.

    .venv/bin/python -m tests.benchmarks.bench_journal [--entries 20000] [--readers 1 1000] [--folder FOLDER]

Real SQLite on FOLDER with every commit flushed to the disk, in one process.  An append is what a worker's report costs:
the transaction that makes it durable, with the job's row.  Latency is from just before that transaction begins until a
reader's loop has the event in its hands.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import structlog

from headrace_server.database.database import Database
from headrace_server.settings import TrainingSettings
from headrace_server.telemetry.metrics import Metrics
from headrace_server.trainers.recipe import Recipe
from headrace_server.trainers.reports import StepCompleted
from headrace_server.training.amendment import Amendment
from headrace_server.training.job import Job
from headrace_server.training.jobs import JobStore
from headrace_server.training.journals import Journals
from headrace_server.training.recording import record
from headrace_server.training.session import WorkerReport
from headrace_server.training.spec import TrainingSpec
from headrace_server.training.states import JobState
from tests.doubles.until import until

GROUPS = (1, 8, 64, 512)
NUM_PROBES = 300


class Bench:
    """One job in a fresh database, and reports for it."""

    def __init__(self, database: Database) -> None:
        metrics = Metrics()
        self.journals = Journals(database, metrics)
        self.jobs = JobStore(database, self.journals, TrainingSettings(keep_events=10_000_000), metrics)
        self._num_reports = 0

    async def begin(self) -> None:
        """Make a job that trains."""
        spec = TrainingSpec(
            dataset="datasets/d", dataset_digest="", trainer="t", parameters={}, model="models/m", recipe=Recipe(seed=1)
        )
        await self.jobs.create(Job(id="j", spec=spec, state=JobState.QUEUED, created_at=datetime.now(UTC)), "")

        def prepare(amendment: Amendment) -> None:
            amendment.begin_attempt("token")
            amendment.move(JobState.PREPARING, "WORKER_STARTED")

        await self.jobs.amend("j", prepare)
        await self.append(1)

    async def append(self, count: int) -> int:
        """Append a group in one transaction; returns the sequence of its last event."""
        reports = [self._report() for _ in range(count)]

        def take(amendment: Amendment) -> int:
            record(amendment, 1, reports)
            return amendment.job.latest_sequence

        return await self.jobs.amend("j", take)

    def _report(self) -> WorkerReport:
        self._num_reports += 1
        step = StepCompleted(
            step=self._num_reports,
            epoch=1,
            fraction=0.5,
            loss=0.25,
            metrics={"accuracy": 0.9},
            learning_rate=0.001,
            samples_per_second=12_345.0,
            step_seconds={"data": 0.001, "forward": 0.002, "backward": 0.003, "optimizer": 0.001},
            remaining_seconds=100.0,
        )
        return WorkerReport(self._num_reports, datetime.now(UTC), step)


async def measure_rate(bench: Bench, entries: int, group: int) -> float:
    """Entries a second, appended in groups with nobody reading."""
    begun = time.perf_counter()
    for _ in range(entries // group):
        await bench.append(group)
    return entries // group * group / (time.perf_counter() - begun)


async def measure_latency(bench: Bench, num_readers: int) -> Sequence[float]:
    """Seconds from append to reader, of every reader, for appends one at a time."""
    begun_at: dict[int, float] = {}
    latencies: list[float] = []
    after = await bench.journals.latest("j", "events")
    last = after + NUM_PROBES
    attached = 0

    async def follow() -> None:
        nonlocal attached
        attached += 1
        async for event in bench.journals.follow_events("j", after, 60):
            if event is not None:
                latencies.append(time.perf_counter() - begun_at[event.sequence])
                if event.sequence == last:
                    return

    async with asyncio.TaskGroup() as tasks:
        for _ in range(num_readers):
            tasks.create_task(follow())
        await until(lambda: attached == num_readers)
        await asyncio.sleep(0.5)  # until the last of them waits for the bell
        for sequence in range(after + 1, last + 1):
            begun_at[sequence] = time.perf_counter()
            await bench.append(1)
            await asyncio.sleep(0.005)
    return latencies


async def main(entries: int, readers: Sequence[int], folder: Path) -> None:
    """Print all figures."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        database = await Database.open(f"sqlite+aiosqlite:///{place}/bench.db")
        bench = Bench(database)
        await bench.begin()
        for group in GROUPS:
            count = min(entries, 2000 * group)
            print(f"append  group {group:4d}: {await measure_rate(bench, count, group):9,.0f} entries/s")
        for num_readers in readers:
            found = sorted(await measure_latency(bench, num_readers))
            p50, p95 = statistics.median(found), found[int(len(found) * 0.95)]
            print(f"latency readers {num_readers:4d}: p50 {p50 * 1000:6.2f} ms   p95 {p95 * 1000:6.2f} ms")
        await bench.jobs.close()
        await database.close()


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=20_000)
    parser.add_argument("--readers", type=int, nargs="*", default=[1, 1000])
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; the system's own if absent")
    given = parser.parse_args()
    asyncio.run(main(given.entries, given.readers, given.folder))
