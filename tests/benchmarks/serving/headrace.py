"""Headrace, as people start it."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.serving.servers import DidNotAnswer, Endpoint, Side, open_inference_endpoint, process
from tests.benchmarks.serving.workloads import Workload


@contextmanager
def serve(workload: Workload, folder: Path, *assignments: str) -> Iterator[Endpoint]:
    """`headrace-server serve` with the model and settings `key=value`."""
    settings = [part for assignment in ("telemetry.metrics_port=-1", *assignments) for part in ("--set", assignment)]
    model = f"{workload.name}={workload.onnx}"
    command = (sys.executable, "-m", "headrace_server", "serve", "--data", folder / "data", "--port", "0")
    with process((*command, "--model", model, *settings), folder) as (server, log):
        port = _port(server.poll, log)
        yield open_inference_endpoint(server, port, workload, log)


def _port(poll: object, log: Path, seconds: float = 60) -> int:
    until = time.monotonic() + seconds
    while time.monotonic() < until and callable(poll) and poll() is None:
        for line in log.read_text(errors="replace").splitlines():
            if '"house.open"' in line:
                return int(json.loads(line)["port"])
        time.sleep(0.05)
    raise DidNotAnswer(log.read_text(errors="replace")[-2000:])


def side(name: str, *assignments: str) -> Side:
    """Headrace with settings."""
    return Side(name, lambda workload, folder: serve(workload, folder, *assignments))


NATIVE = side("Headrace", "server.door=native")
GRPC_AIO = side("Headrace, grpc.aio door", "server.door=grpc_aio")
