"""What no server of a kind can pass: bare echoes without a model, and the model without a server."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.benchmarks.serving.servers import DidNotAnswer, Endpoint, Side, process
from tests.benchmarks.serving.tools import tools
from tests.benchmarks.serving.workloads import Workload, files_of, open_inference

PROGRAMS = Path(__file__).parent / "programs"
ECHO_METHOD = "/bench.Echo/Echo"


@contextmanager
def _echo(command: tuple[object, ...], workload: Workload, folder: Path) -> Iterator[Endpoint]:
    with process(command, folder) as (server, log):
        until = time.monotonic() + 30
        while not (line := log.read_text()).strip().isdigit():
            if time.monotonic() > until or server.poll() is not None:
                raise DidNotAnswer(line)
            time.sleep(0.02)
        bodies = files_of([open_inference(workload.name, request) for request in workload.requests], folder)
        # The answers of an echo are not the model's; what was right of the model is right of it.
        yield Endpoint(server.pid, f"127.0.0.1:{int(line)}", ECHO_METHOD, bodies, None, log)


CPP_ECHO = Side(
    "limit: echo in gRPC C++", lambda workload, folder: _echo((tools().echo, "queue"), workload, folder), tools
)
AIO_ECHO = Side(
    "limit: echo in grpc.aio",
    lambda workload, folder: _echo((sys.executable, PROGRAMS / "aio_echo.py"), workload, folder),
)


@dataclass(frozen=True, slots=True)
class Run:
    """How ONNX Runtime was run in a process, and what came of it."""

    num_sessions: int
    threads_each: int
    batch_rows: int
    rows_per_second: float
    p50_ms: float
    """Of a run of one batch."""
    p99_ms: float

    def __str__(self) -> str:
        plural = "s" if self.num_sessions > 1 else ""
        return f"{self.num_sessions} session{plural} of {self.threads_each}, batches of {self.batch_rows}"


def in_process(workload: Workload, callers: int, seconds: float, folder: Path) -> Run:
    """ONNX Runtime called as `callers` callers at most allow: the best of one and two sessions and of several batches.

    A lone caller's best is the one with the least p50, else the one with the most rows a second.
    """
    rows = folder / "request.npz"
    np.savez(rows, allow_pickle=False, **workload.requests[0])
    if callers == 1:
        found = [_run(workload, 1, threads, 1, seconds, rows) for threads in (1, 2)]
        return min(found, key=lambda run: run.p50_ms)
    most = max(1, callers // 2)
    sizes = [size for size in (1, 4, 8, 32) if size <= most]
    trials = [_run(workload, 2, 1, size, max(0.5, seconds / 5), rows) for size in sizes]
    best = max(trials, key=lambda run: run.rows_per_second)
    return _run(workload, 2, 1, best.batch_rows, seconds, rows)


def _run(workload: Workload, num_sessions: int, threads_each: int, batch_rows: int, seconds: float, rows: Path) -> Run:
    settings = (num_sessions, threads_each, batch_rows, seconds)
    command = [sys.executable, *map(str, (PROGRAMS / "in_process.py", workload.onnx, *settings, rows))]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 60)
    return Run(num_sessions, threads_each, batch_rows, **json.loads(done.stdout))
