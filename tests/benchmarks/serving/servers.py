"""A server under measurement: a process of its own, started, waited for, checked, measured, and ended by its id."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil

from headrace_server.worker.ports import free_port
from tests.benchmarks.serving.workloads import Workload, files_of, open_inference, read_open_inference

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
_ANY_SIZE = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


class DidNotAnswer(Exception):
    """A server ended, or gave no answer or a wrong one; the message ends with what it wrote."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that runs."""

    pid: int
    target: str
    """host:port"""
    method: str
    bodies: tuple[Path, ...]
    """Encoded requests, in the order of the workload's."""
    read: Callable[[bytes], np.ndarray] | None
    """Decodes an answer; None where answers are not the model's."""
    log: Path
    agrees: Callable[[np.ndarray, np.ndarray], bool] = lambda answer, expected: bool(
        np.allclose(answer, expected, rtol=1e-3, atol=1e-4)
    )
    """Whether an answer is right, beside what fp32 says; both flat."""

    def usage(self) -> "Usage":
        """Its processes' time and memory so far."""
        return Usage.of(self.pid)


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a process and all below it."""

    processor_seconds: float
    resident_bytes: int

    @classmethod
    def of(cls, pid: int) -> "Usage":
        """As of now."""
        root = psutil.Process(pid)
        seconds, resident = 0.0, 0
        for process in (root, *root.children(recursive=True)):
            try:
                seconds += sum(process.cpu_times()[:2])
                resident += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return cls(seconds, resident)


@dataclass(frozen=True, slots=True)
class Side:
    """One of those that are compared."""

    name: str
    start: Callable[[Workload, Path], AbstractContextManager[Endpoint]]
    """With a model and an empty folder."""
    prepare: Callable[[], object] = lambda: None
    """Installs what it needs."""


_given: set[int] = set()


def own_port() -> int:
    """A port that nobody has, and that nobody gets until a server has taken it.  None is given twice."""
    port = free_port(without=_given)
    _given.add(port)
    return port


@contextmanager
def process(
    command: Sequence[object], folder: Path, environment: Mapping[str, str] | None = None
) -> "Iterator[tuple[subprocess.Popen[bytes], Path]]":
    """A program in a session of its own, and the file that it writes to; ended with all that it has started.

    Call it on the main thread: from then on SIGTERM unwinds this program, so that a benchmark that is told to end
    leaves no server behind.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    log = folder / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    try:
        yield server, log
    finally:
        _end(server)


def _end(server: "subprocess.Popen[bytes]") -> None:
    children = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
    server.terminate()
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    for child in children:
        if child.is_running():
            child.send_signal(signal.SIGKILL)
    psutil.wait_procs(children, 5)


def open_inference_endpoint(server: "subprocess.Popen[bytes]", port: int, workload: Workload, log: Path) -> Endpoint:
    """The endpoint of a server that speaks the Open Inference Protocol; all of them get the same bytes."""
    contents = [open_inference(workload.name, request) for request in workload.requests]
    bodies = files_of(contents, log.parent)
    return Endpoint(server.pid, f"127.0.0.1:{port}", MODEL_INFER, bodies, read_open_inference, log)


def check(endpoint: Endpoint, workload: Workload, seconds: float = 90) -> None:
    """Wait for the first answer, and compare all of them.  Raises DidNotAnswer."""
    until = time.monotonic() + seconds
    with grpc.insecure_channel(endpoint.target, _ANY_SIZE) as channel:
        call: Any = channel.unary_unary(endpoint.method)
        for number, body in enumerate(endpoint.bodies):
            content = _answer(call, body.read_bytes(), until, endpoint)
            if endpoint.read is None:
                continue
            answer = endpoint.read(content)
            expected = workload.answers[number].ravel()
            if answer.shape != expected.shape or not endpoint.agrees(answer, expected):
                raise DidNotAnswer(f"request {number}: {answer[:4]}… instead of {expected[:4]}…")


def _answer(call: Any, content: bytes, until: float, endpoint: Endpoint) -> bytes:
    while True:
        try:
            answer: bytes = call(content, timeout=10)
            return answer
        except grpc.RpcError as error:
            if time.monotonic() > until or not psutil.pid_exists(endpoint.pid):
                tail = endpoint.log.read_text(errors="replace")[-2000:]
                raise DidNotAnswer(f"{error}\n{tail}") from error
            time.sleep(0.1)
