"""Runs the load generator and reads what it found.  See tests/benchmarks/load/."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.serving.tools import tools


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    p99_9: float
    max: float


@dataclass(frozen=True, slots=True)
class Own:
    """What the generator itself took while it measured."""

    cores: float
    us_per_call: float


@dataclass(frozen=True, slots=True)
class Total:
    """All calls of a run, warm-up and tail included: as many ended as were started."""

    started: int
    answers: int
    errors: dict[str, int]
    first_messages: dict[str, str]
    """What the first error of each kind said."""


@dataclass(frozen=True, slots=True)
class Paced:
    """What only an open loop knows of its window."""

    due: int
    """Calls that were to be made."""
    unsent: int
    """Of these, calls that were not made because too many were in flight."""
    good: int
    """Answers within the deadline, counted from when the call was due."""
    good_per_second: float
    late_start: Latency
    """How late the generator itself was."""


@dataclass(frozen=True, slots=True)
class Found:
    """What ended within the window."""

    seconds: float
    answers: int
    answers_per_second: float
    latency: Latency
    """Of the answers; errors are apart."""
    errors: dict[str, int]
    """By code, and the reason of the ErrorInfo where there is one: "UNAVAILABLE/SERVER_DRAINING"."""
    error_latency: Latency
    answer_bytes: tuple[int, int]
    """The smallest and the largest answer."""
    total: Total
    own: Own
    paced: Paced | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked of the generator."""

    target: str
    method: str
    bodies: Sequence[Path]
    callers: int = 1
    connections: int = 1
    threads: int = 1
    calls: int | None = None
    """Exactly so many, instead of `seconds`."""
    seconds: float = 5
    warm_up_seconds: float = 1
    deadline_seconds: float = 30
    rate: float | None = None
    """Calls a second at random moments, whatever becomes of them; None: a closed loop of `callers`."""
    pause_seconds: float = 0
    """How long a caller of a closed loop rests after an error."""
    service_config: dict[str, Any] | None = None

    def command(self) -> list[str]:
        """The command line."""
        options: dict[str, object] = {
            "--target": self.target,
            "--method": self.method,
            "--connections": self.connections,
            "--threads": self.threads,
            "--deadline-ms": self.deadline_seconds * 1e3,
            "--warm-up": self.warm_up_seconds,
        }
        if self.rate is not None:
            options |= {"--rate": self.rate, "--seconds": self.seconds}
        else:
            options |= {"--callers": self.callers, "--pause-ms": self.pause_seconds * 1e3}
            options |= {"--calls": self.calls} if self.calls is not None else {"--seconds": self.seconds}
        if self.service_config is not None:
            options["--service-config"] = json.dumps(self.service_config)
        pairs = [*options.items(), *(("--body", body) for body in self.bodies)]
        return [str(tools().load), *(str(part) for pair in pairs for part in pair)]

    def run(self) -> Found:
        """Make the calls.  Raises subprocess.CalledProcessError when the generator cannot connect."""
        return self.start().found()

    def start(self) -> "UnderWay":
        """Make the calls while the caller does something else."""
        limit = self.warm_up_seconds + self.seconds + self.deadline_seconds + 30
        return UnderWay(subprocess.Popen(self.command(), stdout=subprocess.PIPE, text=True), limit)


class UnderWay:
    """A load that is being made."""

    def __init__(self, process: "subprocess.Popen[str]", limit_seconds: float) -> None:
        self.process = process
        self._limit_seconds = limit_seconds

    def found(self) -> Found:
        """Wait for its end."""
        try:
            out, _ = self.process.communicate(timeout=self._limit_seconds)
        finally:
            self.process.kill()
            self.process.wait()
        if self.process.returncode:
            raise subprocess.CalledProcessError(self.process.returncode, "load")
        return _read(json.loads(out))


def _read(found: dict[str, Any]) -> Found:
    paced = None
    if found["mode"] == "open":
        late_start = Latency(**found["late_start_ms"])
        paced = Paced(found["due"], found["unsent"], found["good"], found["good_per_second"], late_start)
    return Found(
        seconds=found["seconds"],
        answers=found["answers"],
        answers_per_second=found["answers_per_second"],
        latency=Latency(**found["latency_ms"]),
        errors=found["errors"],
        error_latency=Latency(**found["error_latency_ms"]),
        answer_bytes=(found["answer_bytes"][0], found["answer_bytes"][1]),
        total=Total(**found["total"]),
        own=Own(**found["own"]),
        paced=paced,
    )
