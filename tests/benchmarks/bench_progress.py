"""How long an event takes from a trainer to its readers, and what it costs the trainer.

    python tests/benchmarks/bench_progress.py [--readers 1 1000] [--seconds 10] [--period 0]

A real training of a small table, in one thread, on a real server; each reader is a StreamProgress of its own, all in
one process beside it, on 16 connections.  What that process takes itself is told too: it may be what holds events up.
Latency is from the time that the event carries until the reader has its frame decoded: spool, transaction with its
flush to the disk, and both streams are in it.  The cost to the trainer is what one report takes in its own thread:
made, encoded, and written to the pipe, which somebody reads.  With `--period` readers ask for steps at most so often.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import psutil
from google.protobuf.duration_pb2 import Duration

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from headrace.training.v1 import (  # noqa: E402
    training_service_pb2 as pb,
    training_spec_pb2 as spec_pb,
)
from headrace.training.v1.training_service_pb2_grpc import TrainingServiceStub  # noqa: E402
from headrace_server.trainers.pipe import ReportPipe, end_at_once  # noqa: E402
from headrace_server.trainers.reports import StepCompleted  # noqa: E402
from tests.doubles.flowers import learn_flowers, upload_flowers  # noqa: E402
from tests.doubles.server_process import ServerProcess, end_processes_of  # noqa: E402

if TYPE_CHECKING:
    from headrace.training.v1.training_service_pb2_grpc import TrainingServiceAsyncStub

NUM_CONNECTIONS = 16
NUM_REPORTS = 20_000
NUM_ROWS = 20_000
"""So that an epoch takes longer than the tenth of a second after which a trainer reports again."""
CURRENT_SECONDS = 1.0
"""A reader that sees a step no older than this has caught up with what happened before it came."""
MOST_SECONDS_TO_CONNECT = 30.0


@dataclass
class Readers:
    """What all of them have seen together."""

    num_current: int = 0
    """How many have come to what happens now: what they see from then on is counted."""
    latencies: list[float] = field(default_factory=list)
    """Seconds from a step to a reader."""

    async def read(self, stub: "TrainingServiceAsyncStub", after: int, period: Duration) -> None:
        """One reader: notes how old each step is when it has it.  Runs until cancelled."""
        is_current = False
        call = stub.StreamProgress(
            pb.StreamProgressRequest(name="trainingJobs/j", after_sequence=after, min_step_period=period)
        )
        async for frame in call:
            if frame.HasField("event") and frame.event.HasField("step_completed"):
                seconds = time.time() - frame.event.time.ToNanoseconds() / 1e9
                self.latencies.append(seconds)
                if not is_current and seconds < CURRENT_SECONDS:
                    is_current = True
                    self.num_current += 1


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found with some number of readers."""

    latencies: list[float]
    """Seconds that steps took, over all readers, sorted."""
    to_connect: float
    """Seconds until all readers were current."""
    server_cores: float
    own_cores: float


def cpu_seconds(server_pid: int) -> tuple[float, float]:
    """What the server's process, and this one with all readers, have computed so far."""
    times = [psutil.Process(pid).cpu_times() for pid in (server_pid, os.getpid())]
    return times[0].user + times[0].system, times[1].user + times[1].system


async def with_readers(
    target: str, server_pid: int, num_readers: int, seconds: float, period: Duration
) -> Measured | None:
    """Follow one job with so many readers, and measure once all of them are current; None when they never are."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(target, options=options) for _ in range(min(NUM_CONNECTIONS, num_readers))]
    seen = Readers()
    readers: list[asyncio.Future[None]] = []
    try:
        job = (
            await TrainingServiceStub(channels[0]).GetTrainingJob(pb.GetTrainingJobRequest(name="trainingJobs/j"))
        ).job
        stubs = [TrainingServiceStub(channel) for channel in channels]
        began_at = time.perf_counter()
        readers += [
            asyncio.ensure_future(seen.read(stubs[number % len(stubs)], job.latest_sequence, period))
            for number in range(num_readers)
        ]
        until = began_at + MOST_SECONDS_TO_CONNECT
        while seen.num_current < num_readers and time.perf_counter() < until:  # noqa: ASYNC110 - a measurement
            await asyncio.sleep(0.05)
        to_connect = time.perf_counter() - began_at
        if seen.num_current < num_readers:
            print(f"{num_readers:>6} readers  {seen.num_current} of them current after {to_connect:.0f} s: overloaded")
            return None
        await asyncio.sleep(1)
        seen.latencies.clear()
        before = cpu_seconds(server_pid)
        await asyncio.sleep(seconds)
        after = cpu_seconds(server_pid)
        cores = [(later - earlier) / seconds for earlier, later in zip(before, after, strict=True)]
        return Measured(sorted(seen.latencies), to_connect, *cores)
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        for channel in channels:
            await channel.close()


async def measure(readers: list[int], seconds: float, period: Duration) -> None:
    """Print a line for each number of readers."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = await ServerProcess.start(Path(folder) / "data")
        try:
            async with await server.opened() as callers:
                await upload_flowers(callers, NUM_ROWS)
                resources = spec_pb.Resources(cpu_threads=1)
                await callers.training.StartTraining(learn_flowers("j", epochs=1_000_000, resources=resources))
                async for frame in callers.training.StreamProgress(pb.StreamProgressRequest(name="trainingJobs/j")):
                    if frame.HasField("event") and frame.event.HasField("step_completed"):
                        break
            target = f"127.0.0.1:{(await server.logged('house.open'))['port']}"
            for num_readers in readers:
                found = await with_readers(target, server.pid, num_readers, seconds, period)
                if found is None:
                    continue
                latencies = found.latencies
                p50, p95, p99 = (latencies[int(len(latencies) * share)] * 1e3 for share in (0.5, 0.95, 0.99))
                print(
                    f"{num_readers:>6} readers  current after {found.to_connect:5.1f} s"
                    f"  {len(latencies) / seconds:>8.0f} steps/s"
                    f"  p50 {p50:7.1f} ms  p95 {p95:7.1f} ms  p99 {p99:7.1f} ms"
                    f"  server {found.server_cores:.2f} cores  readers {found.own_cores:.2f} cores",
                    flush=True,
                )
        finally:
            await server.kill()
            end_processes_of(Path(folder))  # the worker would train on


def cost_of_a_report() -> float:
    """Seconds that one report takes in the trainer's thread."""
    read_end, write_end = os.pipe()

    def drain() -> None:
        while os.read(read_end, 1 << 16):
            pass

    reading = threading.Thread(target=drain)
    reading.start()
    pipe = ReportPipe(write_end, end_at_once)
    began_at = time.perf_counter()
    for step in range(1, NUM_REPORTS + 1):
        pipe.write(
            StepCompleted(
                step=step,
                epoch=1,
                fraction=step / NUM_REPORTS,
                loss=0.1,
                metrics={"accuracy": 0.9},
                learning_rate=0.001,
                samples_per_second=1000.0,
                step_seconds={"data": 1e-4, "forward": 1e-4, "backward": 1e-4, "optimizer": 1e-4},
            )
        )
    took = (time.perf_counter() - began_at) / NUM_REPORTS
    os.close(write_end)
    reading.join()
    os.close(read_end)
    return took


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, nargs="+", default=[1, 1000])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--period", type=float, default=0, help="min_step_period of each reader, in seconds")
    asked = parser.parse_args()
    costs = [cost_of_a_report() for _ in range(3)]
    print(f"a report costs the trainer {statistics.median(costs) * 1e6:.1f} us; it makes at most ten a second")
    period = Duration()
    period.FromTimedelta(timedelta(seconds=asked.period))
    asyncio.run(measure(asked.readers, asked.seconds, period))


if __name__ == "__main__":
    main()
