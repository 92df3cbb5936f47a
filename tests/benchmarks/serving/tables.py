"""Results as Markdown, ready for LOG.md."""

import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import psutil

from tests.benchmarks.serving.rounds import Case, Measured, Results, pairs


def machine() -> str:
    """One line about where this was measured."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("grpcio", "onnxruntime", "numpy"))
    return f"{psutil.cpu_count()} cores ({model}), {platform.system()}, Python {platform.python_version()}, {packages}"


def spread(figures: Sequence[float], digits: int = 0) -> str:
    """The median, with the extremes where there are several."""
    middle = f"{statistics.median(figures):,.{digits}f}"
    if len(figures) == 1:
        return middle
    return f"{middle} ({min(figures):,.{digits}f}-{max(figures):,.{digits}f})"


def rows(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A table."""
    head = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return "\n".join([*head, *(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)])


def comparison(results: Results) -> str:
    """A line a case, and below it what did not run."""
    header = (
        "model",
        "callers",
        "side",
        "answers/s",
        "p50, ms",
        "p99, ms",
        "server, us an answer",
        "resident, MiB",
        "",
    )
    lines = [_line(results, case) for case in sorted(results.rounds, key=_order(results))]
    busiest = max((each.generator_cores for found in results.rounds.values() for each in found), default=0.0)
    notes = [f"The load generator itself had at most {busiest:.2f} cores."]
    notes += [f"{side} did not run: {why}" for side, why in results.failures.items()]
    return "\n\n".join([rows(header, lines), *notes])


def _order(results: Results) -> Callable[[Case], tuple[int, int]]:
    places = {pair: place for place, pair in enumerate(pairs(results))}
    sides = {side: place for place, side in enumerate(dict.fromkeys(case.side for case in results.rounds))}
    return lambda case: (places[case.model, case.callers], sides[case.side])


def _line(results: Results, case: Case) -> tuple[object, ...]:
    good = results.good(case)

    def column(of: Callable[[Measured], float], digits: int = 0) -> str:
        return spread([of(each) for each in good], digits)

    errors = sum(each.errors for each in results.rounds[case])
    remarks = [f"{errors} errors"] if errors else []
    remarks += ["disturbed, no result"] if results.was_disturbed(case) else []
    left_out = len(results.rounds[case]) - len(good)
    remarks += [f"{left_out} disturbed rounds left out"] if left_out else []
    return (
        case.model,
        case.callers,
        case.side,
        column(lambda each: each.answers_per_second),
        column(lambda each: each.p50_ms, 2),
        column(lambda each: each.p99_ms, 2),
        f"{statistics.median(each.server_us for each in good):,.0f}",
        f"{statistics.median(each.resident_mib for each in good):,.0f}",
        ", ".join(remarks),
    )


def ratios(results: Results, of: str, to: Sequence[str]) -> str:
    """One side against the best of others: answers a second and p50, as the medians of the ratios within a round.

    Rounds that were disturbed are left out where there are others; a row without any says so.  Empty when none of the
    others ran.
    """
    lines = []
    for model, callers in pairs(results):
        others = [side for side in to if Case(model, callers, side) in results.rounds]
        ours = results.rounds.get(Case(model, callers, of))
        if not others or ours is None:
            continue
        fastest = max(others, key=lambda side: _median(results, model, callers, side, "answers_per_second"))
        quickest = min(others, key=lambda side: _median(results, model, callers, side, "p50_ms"))
        rates = _within_rounds(ours, results.rounds[Case(model, callers, fastest)], "answers_per_second")
        waits = _within_rounds(ours, results.rounds[Case(model, callers, quickest)], "p50_ms")
        compared = [Case(model, callers, side) for side in (of, fastest, quickest)]
        remark = "disturbed, no result" if any(map(results.was_disturbed, compared)) else ""
        lines.append((model, callers, fastest, spread(rates, 2), quickest, spread(waits, 2), remark))
    header = ("model", "callers", "most answers/s", f"{of} to it", "least p50", f"{of} to it", "")
    return rows(header, lines) if lines else ""


def _median(results: Results, model: str, callers: int, side: str, name: str) -> float:
    middle: float = statistics.median(getattr(each, name) for each in results.good(Case(model, callers, side)))
    return middle


def _within_rounds(ours: Sequence[Measured], theirs: Sequence[Measured], name: str) -> list[float]:
    both = list(zip(ours, theirs, strict=False))
    good = [(mine, its) for mine, its in both if mine.is_good and its.is_good] or both
    return [getattr(mine, name) / max(getattr(its, name), 1e-9) for mine, its in good]
