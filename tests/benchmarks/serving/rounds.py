"""Measures sides in turn: in every round each of them is started, checked, loaded and ended, so only one ever runs."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.benchmarks.serving.load import Load
from tests.benchmarks.serving.quiet import MAX_OTHERS_CORES, Others
from tests.benchmarks.serving.servers import DidNotAnswer, Endpoint, Side, check
from tests.benchmarks.serving.tools import CannotBuild
from tests.benchmarks.serving.workloads import Workload

MOST_CONNECTIONS = 8
WARM_UP_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Measured:
    """One side with one model under one load, once."""

    answers_per_second: float
    p50_ms: float
    p99_ms: float
    server_us: float
    """Processor time of the server an answer."""
    resident_mib: float
    generator_cores: float
    others_cores: float
    """How many cores other programs had meanwhile."""
    errors: int

    @property
    def is_good(self) -> bool:
        """Whether nobody disturbed it."""
        return self.others_cores <= MAX_OTHERS_CORES


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """What is measured in every round."""

    model: str
    callers: int
    side: str


@dataclass(slots=True)
class Results:
    """All rounds of all cases, in the order in which they were first measured."""

    rounds: dict[Case, list[Measured]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """Sides that did not run, and why."""

    def good(self, case: Case) -> list[Measured]:
        """The rounds that nobody disturbed; all of them when there is none."""
        return [each for each in self.rounds[case] if each.is_good] or self.rounds[case]

    def was_disturbed(self, case: Case) -> bool:
        """Whether every round was, so that this is no result."""
        return not any(each.is_good for each in self.rounds[case])

    def add(self, case: Case, measured: Measured) -> None:
        """Keep one, and say so on the terminal, so that an interrupted run has not been for nothing."""
        self.rounds.setdefault(case, []).append(measured)
        print(json.dumps({**asdict(case), **asdict(measured)}), file=sys.stderr, flush=True)


def under_load(endpoint: Endpoint, callers: int, seconds: float, attempts: int = 2) -> Measured:
    """Load a server in a closed loop; a disturbed attempt is repeated, and the last one counts as it is."""
    load = Load(
        target=endpoint.target,
        method=endpoint.method,
        bodies=endpoint.bodies,
        callers=callers,
        connections=min(callers, MOST_CONNECTIONS),
        seconds=seconds,
        warm_up_seconds=WARM_UP_SECONDS,
    )
    return undisturbed(lambda: _load_once(endpoint, load), attempts)


def undisturbed(measure: Callable[[], Measured], attempts: int) -> Measured:
    """Repeat until nobody disturbs, but not for ever."""
    for _ in range(attempts):
        measured = measure()
        if measured.is_good:
            break
    return measured


def _load_once(endpoint: Endpoint, load: Load) -> Measured:
    usage, others = endpoint.usage(), Others.now()
    found = load.run()
    used, disturbance = endpoint.usage(), Others.now().cores_since(others)
    spent = used.processor_seconds - usage.processor_seconds
    return Measured(
        answers_per_second=found.answers_per_second,
        p50_ms=found.latency.p50,
        p99_ms=found.latency.p99,
        server_us=spent / max(1, found.total.answers) * 1e6,
        resident_mib=used.resident_bytes / (1 << 20),
        generator_cores=found.own.cores,
        others_cores=disturbance,
        errors=sum(found.total.errors.values()),
    )


def compare(
    sides: Sequence[Side], workloads: Sequence[Workload], callers: Sequence[int], rounds: int, seconds: float
) -> Results:
    """Every side with every model, in turn: A B A B.  A side that fails is left out of what follows."""
    results = Results()
    for side in sides:
        with _noting(results, side):
            side.prepare()
    for _ in range(rounds):
        for workload in workloads:
            for side in sides:
                if side.name in results.failures:
                    continue
                with (
                    _noting(results, side),
                    tempfile.TemporaryDirectory() as folder,
                    side.start(workload, Path(folder)) as endpoint,
                ):
                    check(endpoint, workload)
                    for count in callers:
                        results.add(Case(workload.name, count, side.name), under_load(endpoint, count, seconds))
    return results


@contextmanager
def _noting(results: Results, side: Side) -> Iterator[None]:
    """Note why a side did not run, instead of ending everything."""
    try:
        yield
    except (DidNotAnswer, CannotBuild, subprocess.SubprocessError, OSError) as error:
        results.failures[side.name] = f"{type(error).__name__}: {error}"
        print(f"{side.name} did not run: {error}", file=sys.stderr, flush=True)


def pairs(results: Results) -> Iterator[tuple[str, int]]:
    """Each model with each number of callers, in order."""
    yield from dict.fromkeys((case.model, case.callers) for case in results.rounds)
