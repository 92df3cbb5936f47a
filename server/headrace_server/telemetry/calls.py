"""The metrics of calls: those of the complete server, and those that the native door has answered, as one.

The native door counts by itself; it is read when Prometheus asks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString


@dataclass(frozen=True, slots=True)
class MethodCounts:
    """What was counted of the calls of one method."""

    method: str
    codes: Mapping[str, int]
    """Calls that ended, by the name of their code."""
    seconds: Sequence[int]
    """How many took at most each bound of the histogram but more than the one before, and how many exceeded all."""
    seconds_sum: float
    passed: Mapping[str, int]
    """Calls that were left to somebody else, by why."""


@dataclass(frozen=True, slots=True)
class CallCounts:
    """What was counted elsewhere than in the metrics themselves."""

    in_flight: int
    methods: Sequence[MethodCounts]


class CallMetrics(Collector):
    """Shows four metrics, with what its sources have counted added."""

    def __init__(self, calls: Counter, seconds: Histogram, in_flight: Gauge, passed: Counter, bounds: Sequence[float]):
        """None of them is in a registry; `bounds` are those of `seconds`."""
        self._calls = calls
        self._seconds = seconds
        self._in_flight = in_flight
        self._passed = passed
        self._bounds = [*map(floatToGoString, bounds), "+Inf"]
        self._sources: list[Callable[[], CallCounts]] = []

    def add_source(self, source: Callable[[], CallCounts]) -> None:
        """Ask this one too; from the thread that serves the page."""
        self._sources.append(source)

    def describe(self) -> Iterable[Metric]:
        """Every metric, without values."""
        for metric in (self._calls, self._seconds, self._in_flight, self._passed):
            yield from metric.describe()

    def collect(self) -> Iterable[Metric]:
        """Every metric with the values of this moment."""
        counts = [source() for source in self._sources]
        methods = [method for each in counts for method in each.methods]
        yield _with(
            self._calls, _by_label("headrace_calls_total", "code", [(one.method, one.codes) for one in methods])
        )
        yield _with(self._seconds, (sample for one in methods for sample in self._histogram(one)))
        yield _with(self._in_flight, [("headrace_calls_in_flight", {}, sum(each.in_flight for each in counts))])
        passed = [(one.method, one.passed) for one in methods]
        yield _with(self._passed, _by_label("headrace_passed_calls_total", "reason", passed))

    def _histogram(self, counts: MethodCounts) -> Iterator["_Value"]:
        total = 0
        if not any(counts.seconds):
            return
        for bound, count in zip(self._bounds, counts.seconds, strict=True):
            total += count
            yield "headrace_call_duration_seconds_bucket", {"method": counts.method, "le": bound}, total
        yield "headrace_call_duration_seconds_count", {"method": counts.method}, total
        yield "headrace_call_duration_seconds_sum", {"method": counts.method}, counts.seconds_sum


_Value = tuple[str, dict[str, str], float]


def _by_label(name: str, label: str, counted: Iterable[tuple[str, Mapping[str, int]]]) -> Iterator[_Value]:
    for method, counts in counted:
        for value, count in counts.items():
            yield name, {"method": method, label: value}, count


def _with(metric: Collector, values: Iterable[_Value]) -> Metric:
    """The only family of a metric, with these values added to those that it has."""
    (family,) = metric.collect()
    samples = {(sample.name, frozenset(sample.labels.items())): sample for sample in family.samples}
    for name, labels, value in values:
        key = (name, frozenset(labels.items()))
        before = samples[key].value if key in samples else 0
        samples[key] = Sample(name, labels, before + value)
    family.samples = [*samples.values()]
    return family
