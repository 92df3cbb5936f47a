"""Tries one plan in the measuring process: makes it, compares its answers at several sizes of batch, and times it."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import file_digest
from pathlib import Path
from typing import TypeAlias

import numpy as np

from headrace_server.inference.backends.backend import Session
from headrace_server.inference.plans.difference import Difference, measure_difference
from headrace_server.inference.plans.measurement import Arrangement, PreparedFile, Speed, Trial
from headrace_server.inference.plans.opening import PlanFiles, open_plan
from headrace_server.inference.plans.plan import CPU, Plan
from headrace_server.inference.plans.preparing import prepare
from headrace_server.inference.plans.timing import LEAST_BLOCKS, median_run, time_in_turns
from headrace_server.inference.plans.trimming import find_mask
from headrace_server.memory import taken_bytes
from headrace_server.models.calibration import CalibrationRows
from headrace_server.models.version import ArtifactFormat
from headrace_server.precision import Tolerances
from headrace_server.tensors import Array, Signature, Tensors

HOPELESS = 4.0
"""A plan that takes so many times as long as the 32-bit one is neither compared nor timed any further."""
GAIN = 1.05
"""What a batch twice the size must gain in rows a second; after two that do not, larger ones are not timed."""
_SLOW_SECONDS = 0.1
"""What takes less is compared in no time."""
_LEAST_ROUNDS = 2
_TRIES = 3
_MOST_WARM_UP_SECONDS = 60.0
_Way: TypeAlias = tuple[int, int]
"""Runs at the same time, and the threads of each."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all plans of a version are tried with."""

    sources: dict[ArtifactFormat, Path]
    signature: Signature
    rows: CalibrationRows
    sizes: Sequence[int]
    """Rows of a batch, ascending."""
    thread_counts: Sequence[int]
    folder: Path
    """Where prepared files go."""
    seconds_per_figure: float
    seconds_per_compilation: float
    base: dict[tuple[int, int], float]
    """Seconds of the 32-bit program by rows and threads; filled by its own trial."""
    references: dict[int, Tensors]
    """What every plan is compared with, by rows; filled before the first trial where the trained network's answers are
    at hand, and else by the first trial itself."""
    tolerances: Tolerances = field(default_factory=Tolerances)
    """What plans are made to keep to, where they can be."""


def try_plan(plan: Plan, bench: Bench) -> Trial:
    """Try a plan.  Whatever it raises is the trial's problem: this is what trying is for."""
    started_at = time.perf_counter()
    prepared: PreparedFile | None = None
    try:
        files = PlanFiles(bench.sources[plan.source])
        if plan.prepared_file is not None:
            target = bench.folder / plan.prepared_file
            seconds, rows = bench.seconds_per_compilation, bench.rows.inputs
            prepare(plan, files.source, bench.signature, rows, target, seconds, bench.tolerances)
            files = PlanFiles(files.source, target)
            prepared = describe_file(target)
        prepare_seconds = time.perf_counter() - started_at
        memory_before = taken_bytes(plan.device)
        with _opened(plan, files, bench, bench.thread_counts[0]) as session:
            differences = tuple(_compared(session, bench))
            metric = _metric(session, bench)
            mask_input = find_mask(session, bench.signature, bench.rows.inputs) if not bench.base else ""
            resident_bytes = max(taken_bytes(plan.device) - memory_before, 0)
            speeds = list(_time(session, bench, bench.thread_counts[0]))
        if plan.device == CPU and len(bench.thread_counts) > 1:
            with _opened(plan, files, bench, bench.thread_counts[-1]) as wide:
                speeds += _time(wide, bench, bench.thread_counts[-1])
        arrangements: tuple[Arrangement, ...] = ()
        if plan.device == CPU and _is_hopeful(speeds, bench):
            with _opened_both_ways(plan, files, bench) as ways:
                before = _lone_runs(ways, bench)
                arrangements = tuple(_arrangements(ways, bench))
                after = _lone_runs(ways, bench)  # a second later, in which the machine may do something else
                speeds = _with_lone_runs(speeds, before, after)
    except Exception as error:  # noqa: BLE001 - a runtime may raise anything, and this is where we want to know
        return Trial(plan=plan, problem=_first_line(error), prepared=prepared)
    return Trial(
        plan=plan,
        differences=differences,
        speeds=tuple(speeds),
        arrangements=arrangements,
        metric=metric,
        mask_input=mask_input,
        prepared=prepared,
        prepare_seconds=prepare_seconds if prepared is not None else 0.0,
        resident_bytes=resident_bytes,
    )


def batch_of(arrays: Tensors, rows: int, signature: Signature) -> dict[str, Array]:
    """So many rows, from the beginning again where there are not enough; all there is of a model without rows."""
    if not signature.is_batchable:
        return dict(arrays)
    return {name: array[np.resize(np.arange(len(array)), rows)] for name, array in arrays.items()}


@contextmanager
def _opened(plan: Plan, files: PlanFiles, bench: Bench, num_threads: int, num_runs: int = 1) -> Iterator[Session]:
    session = open_plan(plan, files, bench.signature, num_threads=num_threads, num_runs=num_runs)
    try:
        yield session
    finally:
        session.close()


def _compared_sizes(bench: Bench) -> list[int]:
    """A single row, a usual batch, and the largest: what the parity certificate states."""
    usual = [size for size in bench.sizes if size <= 8][-1:]
    return sorted({bench.sizes[0], *usual, bench.sizes[-1]})


def _compared(session: Session, bench: Bench) -> Iterator[Difference]:
    """Compare at all sizes; at the first alone what is hopelessly slow there, and would take minutes at the largest."""
    for rows in _compared_sizes(bench):
        yield _compare(session, bench, rows)
        base = bench.base.get((rows, bench.thread_counts[0]))
        if base is not None and rows == bench.sizes[0]:
            inputs = batch_of(bench.rows.inputs, rows, bench.signature)
            started_at = time.perf_counter()
            session.run(inputs)
            if time.perf_counter() - started_at > max(base * HOPELESS, _SLOW_SECONDS):
                return


def _compare(session: Session, bench: Bench, rows: int) -> Difference:
    outputs = session.run(batch_of(bench.rows.inputs, rows, bench.signature))
    reference = bench.references.setdefault(rows, outputs)
    return measure_difference(reference, outputs, bench.signature)


def _metric(session: Session, bench: Bench) -> float | None:
    """The share of right classes, or the root of the mean squared error, on the rows whose targets are known."""
    if not bench.rows.targets:
        return None
    (name, targets), *_ = bench.rows.targets.items()
    answers = session.run(bench.rows.inputs)[name]
    if says_classes(bench, name):
        classes = answers.argmax(-1) if answers.dtype.kind == "f" and answers.ndim > 1 else answers
        return float((classes == targets).mean())
    return float(np.sqrt(np.mean((answers.astype(np.float64) - targets.astype(np.float64)) ** 2)))


def says_classes(bench: Bench, output: str) -> bool:
    """Whether an output says classes, so that being right is what counts; else it is how near it comes."""
    spec = next(spec for spec in bench.signature.outputs if spec.name == output)
    return bool(spec.class_names) or not spec.data_type.is_floating


def _time(session: Session, bench: Bench, threads: int) -> Iterator[Speed]:
    """Time growing batches; the first trial of all says by what it gains which sizes are worth timing."""
    best, without_gain = 0.0, 0
    for rows in _timed_sizes(bench):
        inputs = batch_of(bench.rows.inputs, rows, bench.signature)
        base = bench.base.get((rows, threads))
        hopeless = base * HOPELESS if base is not None else None
        seconds = median_run(partial(session.run, inputs), bench.seconds_per_figure, hopeless)
        yield Speed(rows=rows, threads=threads, seconds=seconds)
        if base is not None:
            if seconds > base * HOPELESS:
                return  # larger batches would be no better, and take minutes
            continue
        bench.base[rows, threads] = seconds
        without_gain = without_gain + 1 if rows / seconds < best * GAIN else 0
        best = max(best, rows / seconds)
        if without_gain == 2:
            return


def _timed_sizes(bench: Bench) -> list[int]:
    """All sizes for the very first timing, and afterwards those that it has got to."""
    timed = {rows for rows, _ in bench.base}
    return [rows for rows in bench.sizes if not timed or rows in timed]


def _is_hopeful(speeds: Sequence[Speed], bench: Bench) -> bool:
    known = ((speed.seconds, bench.base.get((speed.rows, speed.threads))) for speed in speeds)
    return any(base is not None and seconds <= base * 1.1 for seconds, base in known)


@contextmanager
def _opened_both_ways(plan: Plan, files: PlanFiles, bench: Bench) -> Iterator[dict[_Way, Session]]:
    """One session for a run with all threads, and one for as many runs of one thread as there are cores."""
    cores = bench.thread_counts[-1]
    with ExitStack() as stack:
        yield {
            (runs, threads): stack.enter_context(_opened(plan, files, bench, threads, runs))
            for runs, threads in sorted({(1, cores), (cores, 1)})
        }


def _lone_runs(ways: Mapping[_Way, Session], bench: Bench) -> dict[int, float]:
    """Seconds of a single row by the number of threads: what a caller waits for who is alone.

    Few threads or all of them is decided by these alone, for as long as the verdict holds: so they take turns, on a
    thread of their own, which has the helpers of its runs with it when it ends.
    """
    inputs = batch_of(bench.rows.inputs, bench.sizes[0], bench.signature)
    blocks = {
        threads: partial(median_run, partial(session.run, inputs), bench.seconds_per_figure / LEAST_BLOCKS)
        for (_, threads), session in ways.items()
    }
    with ThreadPoolExecutor(1) as worker:
        return worker.submit(time_in_turns, blocks).result()


def _with_lone_runs(speeds: Sequence[Speed], *lone: Mapping[int, float]) -> list[Speed]:
    """The same speeds, with the least of what was timed in turns in the place of what was timed once."""
    rows = min(speed.rows for speed in speeds)
    return [
        speed.model_copy(update={"seconds": min(times[speed.threads] for times in lone)})
        if speed.rows == rows
        else speed
        for speed in speeds
    ]


def _arrangements(ways: Mapping[_Way, Session], bench: Bench) -> Iterator[Arrangement]:
    """What each way answers of a usual batch, while there is always another.

    They take turns, and the best of each counts: whatever else the machine does only makes them slower.
    """
    rows = [size for size in bench.sizes if size <= 8][-1]
    rates = dict.fromkeys(ways, 0.0)
    for _ in range(_TRIES):
        for way, session in ways.items():
            rates[way] = max(rates[way], _throughput(session, bench, rows, way[0]))
    for (runs, threads), rate in rates.items():
        yield Arrangement(sessions=runs, threads=threads, rows=rows, rows_per_second=rate)


def _throughput(session: Session, bench: Bench, rows: int, num_threads: int) -> float:
    """Rows a second of so many threads that run the same session at the same time.  Raises what it raises."""
    inputs = batch_of(bench.rows.inputs, rows, bench.signature)
    begin = threading.Barrier(num_threads)

    def work(_: int) -> float:
        try:
            session.run(inputs)  # the first one of a thread pays for what is lazy
        except BaseException:
            begin.abort()
            raise
        try:
            begin.wait(_MOST_WARM_UP_SECONDS)
        except threading.BrokenBarrierError:
            return 0.0  # the other one says why
        started_at = time.perf_counter()
        count, taken = 0, 0.0
        while count < _LEAST_ROUNDS or taken < bench.seconds_per_figure:
            session.run(inputs)
            count, taken = count + 1, time.perf_counter() - started_at
        return count * rows / taken

    with ThreadPoolExecutor(num_threads) as workers:
        return sum(workers.map(work, range(num_threads)))


def describe_file(path: Path) -> PreparedFile:
    """A file that was made for a plan."""
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
        return PreparedFile(name=path.name, digest=f"sha256:{digest}", size_bytes=file.tell())


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0][:500]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
