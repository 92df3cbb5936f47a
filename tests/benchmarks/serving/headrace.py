"""Headrace, as people start it."""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from headrace import BlockingClient
from headrace.models.v1.plan_pb2 import Plan
from tests.benchmarks.serving.places import BUILD
from tests.benchmarks.serving.plan_table import summary
from tests.benchmarks.serving.servers import DidNotAnswer, Endpoint, Side, open_inference_endpoint, process
from tests.benchmarks.serving.workloads import Workload, with_rows

NATIVE_DOOR = "server.door=native"
AUTO_PRECISION = "inference.default_precision=auto"
MEASURE_SECONDS = 900
"""How long a server may take to try all the ways to run a model."""
LEAST_COSINE = 0.999
_LANES = {"minilm": 2, "cnn": 2}
"""Threads with a session each, as this comparison uses them.  One for every other model."""


@contextmanager
def serve(workload: Workload, folder: Path, *assignments: str, data: Path | None = None) -> Iterator[Endpoint]:
    """`headrace-server serve` with the model and settings `key=value`; keeps its data in `data`, else in `folder`."""
    lanes = f"inference.lanes_per_model={_LANES.get(workload.name, 1)}"
    chosen = ("telemetry.metrics_port=-1", lanes, *assignments)
    settings = [part for assignment in chosen for part in ("--set", assignment)]
    # A folder has the torch program, too.  Without a precision to choose, the program of ONNX is all that is wanted.
    path = with_rows(workload) if AUTO_PRECISION in assignments else workload.onnx
    model = ("--model", f"{workload.name}={path}")
    command = (sys.executable, "-m", "headrace_server", "serve", "--data", data or folder / "data", "--port", "0")
    with process((*command, *model, *settings), folder) as (server, log):
        line = wait_for(log, lambda event: event["event"] == "house.open", server.poll, 60)
        yield open_inference_endpoint(server, int(line["port"]), workload, log)


def events(log: Path) -> list[dict[str, Any]]:
    """What a server has logged so far."""
    found = []
    for line in log.read_text(errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # a line that is being written, or not the server's
    return found


def wait_for(
    log: Path, wanted: Callable[[Mapping[str, Any]], bool], poll: Callable[[], int | None], seconds: float
) -> dict[str, Any]:
    """The first line of the log that is wanted.  Raises DidNotAnswer when the server ends, or takes too long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and poll() is None:
        for event in events(log):
            if "event" in event and wanted(event):
                return event
        time.sleep(0.05)
    raise DidNotAnswer(log.read_text(errors="replace")[-2000:])


def best_plan(target: str, model: str) -> Plan:
    """Wait until the server has tried every plan of a model.  Raises DidNotAnswer when it cannot, or takes too long."""
    until = time.monotonic() + MEASURE_SECONDS
    with BlockingClient(target) as client:
        while time.monotonic() < until:
            plan = client.get_plan(model)
            if plan.state == Plan.STATE_CHOSEN and plan.running:
                return plan
            if plan.state == Plan.STATE_FAILED:
                raise DidNotAnswer(plan.problem)
            time.sleep(0.5)
    raise DidNotAnswer(f"{model} was not measured within {MEASURE_SECONDS} s")


def is_close(answer: np.ndarray, expected: np.ndarray) -> bool:
    """Whether a reduced precision is still within what AUTO promises here."""
    lengths = np.linalg.norm(answer) * np.linalg.norm(expected)
    return bool(np.dot(answer, expected) >= LEAST_COSINE * lengths)


@contextmanager
def serve_auto(workload: Workload, folder: Path) -> Iterator[Endpoint]:
    """A server that chose by measuring how to run the model: the first measures for minutes, later ones remember."""
    data = BUILD / "auto" / workload.name
    data.parent.mkdir(parents=True, exist_ok=True)
    with serve(workload, folder, NATIVE_DOOR, AUTO_PRECISION, data=data) as endpoint:
        plan = best_plan(endpoint.target, workload.name)
        print(summary(plan), file=sys.stderr, flush=True)
        yield dataclasses.replace(endpoint, agrees=is_close)


def side(name: str, *assignments: str) -> Side:
    """Headrace with settings."""
    return Side(name, lambda workload, folder: serve(workload, folder, *assignments))


NATIVE = side("Headrace", NATIVE_DOOR)
GRPC_AIO = side("Headrace, grpc.aio door", "server.door=grpc_aio")
AUTO = Side("Headrace, AUTO", serve_auto)
