"""How long an event takes from a trainer to its readers, and what it costs the trainer.

    python tests/benchmarks/bench_progress.py [--readers 1 1000] [--seconds 10] [--period 0] [--doors native,grpc_aio]

A real training of a small table, in one thread, on a real server; each reader is a StreamProgress of its own, all in
one program in C++ beside it, on 16 connections (load/follow.cc).  What that program takes itself is told too.
Latency is from the time that the event carries until the reader has its frame and has read the time in it: spool,
transaction with its flush to the disk, and both streams are in it.  The cost to the trainer is what one report takes in
its own thread: made, encoded, and written to the pipe, which somebody reads.  With `--period` readers ask for steps at
most so often.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil
from google.protobuf.duration_pb2 import Duration

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from headrace.training.v1 import (  # noqa: E402
    training_service_pb2 as pb,
    training_spec_pb2 as spec_pb,
)
from headrace_server.trainers.pipe import ReportPipe, end_at_once  # noqa: E402
from headrace_server.trainers.reports import StepCompleted  # noqa: E402
from tests.benchmarks.serving.tools import tools  # noqa: E402
from tests.doubles.flowers import learn_flowers, upload_flowers  # noqa: E402
from tests.doubles.server_process import ServerProcess, end_processes_of  # noqa: E402

NUM_REPORTS = 20_000
NUM_ROWS = 20_000
"""So that an epoch takes longer than the tenth of a second after which a trainer reports again."""
MOST_SECONDS_TO_CONNECT = 30


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found with some number of readers."""

    num_current: int
    """Readers that saw a step while it was young; nothing else was measured unless all did."""
    to_connect: float
    """Seconds until all of them had."""
    num_steps: int
    """That all readers got together."""
    p50_ms: float
    p95_ms: float
    p99_ms: float
    own_cores: float
    server_cores: float


def cpu_seconds(pid: int) -> float:
    """What a process has computed so far."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def with_readers(target: str, server_pid: int, num_readers: int, seconds: float, request: Path) -> Measured:
    """Follow one job with so many readers, and measure once all of them are current."""
    options = {
        "--target": target,
        "--request": request,
        "--readers": num_readers,
        "--seconds": seconds,
        "--wait": MOST_SECONDS_TO_CONNECT,
    }
    command = [str(tools().follow), *(str(part) for pair in options.items() for part in pair)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        line = following.stdout.readline()
        server_cores = 0.0
        if line.strip() == "counting":
            before = cpu_seconds(server_pid)
            line = following.stdout.readline()
            server_cores = (cpu_seconds(server_pid) - before) / seconds
    found = json.loads(line)
    return Measured(
        num_current=found["num_current"],
        to_connect=found["to_connect"],
        num_steps=found["steps"],
        p50_ms=found["p50_ms"],
        p95_ms=found["p95_ms"],
        p99_ms=found["p99_ms"],
        own_cores=found["cores"],
        server_cores=server_cores,
    )


async def measure(door: str, readers: list[int], seconds: float, period: Duration) -> None:
    """Print a line for each number of readers."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = await ServerProcess.start(Path(folder) / "data", "--set", f"server.door={door}")
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
                    get = pb.GetTrainingJobRequest(name="trainingJobs/j")
                    after = (await callers.training.GetTrainingJob(get)).job.latest_sequence
                    request = Path(folder) / "request"
                    asked = pb.StreamProgressRequest(name=get.name, after_sequence=after, min_step_period=period)
                    request.write_bytes(asked.SerializeToString())
                    found = await asyncio.to_thread(with_readers, target, server.pid, num_readers, seconds, request)
                    print(line(door, num_readers, seconds, found), flush=True)
        finally:
            await server.kill()
            end_processes_of(Path(folder))  # the worker would train on


def line(door: str, num_readers: int, seconds: float, found: Measured) -> str:
    """A row of the table."""
    if found.num_current < num_readers:
        ending = f"never: {found.num_current} after {found.to_connect:.0f} s | | | | | |"
        return f"| {door} | {num_readers:,} | {ending} |"
    steps = found.num_steps / seconds
    each_us = found.server_cores / max(1.0, steps) * 1e6
    return (
        f"| {door} | {num_readers:,} | {found.to_connect:.1f} | {steps:,.0f} | {found.p50_ms:.1f} | {found.p95_ms:.1f} "
        f"| {found.p99_ms:.1f} | {found.server_cores:.2f} | {each_us:.0f} | {found.own_cores:.2f} |"
    )


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
    parser.add_argument("--doors", type=lambda text: text.split(","), default=["native"], metavar="A,B")
    asked = parser.parse_args()
    costs = [cost_of_a_report() for _ in range(3)]
    print(f"a report costs the trainer {statistics.median(costs) * 1e6:.1f} us; it makes at most ten a second")
    print(
        "| door | readers | all current after, s | steps/s, all | p50, ms | p95, ms | p99, ms | server, cores |", end=""
    )
    print(" server, us a step and reader | readers, cores |\n" + "|---" * 10 + "|")
    period = Duration()
    period.FromTimedelta(timedelta(seconds=asked.period))
    tools()
    for door in asked.doors:
        asyncio.run(measure(door, asked.readers, asked.seconds, period))


if __name__ == "__main__":
    main()
