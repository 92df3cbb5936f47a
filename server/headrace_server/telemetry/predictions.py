"""The metrics of predictions, which the native batcher counts: read there when Prometheus asks."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class HistogramCounts:
    """How many values were at most each bound but more than the one before, how many exceeded all, and their sum."""

    bounds: Sequence[float]
    counts: Sequence[int]
    sum: float


@dataclass(frozen=True, slots=True)
class PredictionCounts:
    """What was counted for one model version."""

    labels: tuple[str, str]
    """Model, version."""
    outcomes: Mapping[str, int]
    queue_seconds: HistogramCounts
    compute_seconds: HistogramCounts
    batch_rows: HistogramCounts
    batches: Mapping[str, int]
    waiting_rows: int
    shed: Mapping[str, int]


class PredictionMetrics(Collector):
    """Shows what its sources have counted."""

    def __init__(self) -> None:
        self._sources: list[Callable[[], Iterable[PredictionCounts]]] = []

    def add_source(self, source: Callable[[], Iterable[PredictionCounts]]) -> None:
        """Ask this one too; from the thread that serves the page."""
        self._sources.append(source)

    def describe(self) -> Iterable[Metric]:
        """Every metric, without values."""
        return self._families(())

    def collect(self) -> Iterable[Metric]:
        """Every metric with the values of this moment."""
        return self._families([counts for source in self._sources for counts in source()])

    def _families(self, versions: Sequence[PredictionCounts]) -> Iterator[Metric]:
        yield _counter(
            "headrace_predictions", "Predictions that ended, by outcome: ok, or the reason of the error.",
            "outcome", [(one.labels, one.outcomes) for one in versions],
        )  # fmt: skip
        yield _histogram(
            "headrace_queue_duration_seconds", "From admission until its batch began to be assembled.",
            [(one.labels, one.queue_seconds) for one in versions],
        )  # fmt: skip
        yield _histogram(
            "headrace_compute_duration_seconds", "One run of a model on one batch.",
            [(one.labels, one.compute_seconds) for one in versions],
        )  # fmt: skip
        yield _histogram("headrace_batch_rows", "Rows in a batch.", [(one.labels, one.batch_rows) for one in versions])
        yield _counter(
            "headrace_batch_dispatch", "Batches, by why they closed: full, idle, delay, deadline, drain.",
            "reason", [(one.labels, one.batches) for one in versions],
        )  # fmt: skip
        waiting = GaugeMetricFamily(
            "headrace_waiting_rows", "Rows that wait to be computed.", labels=["model", "version"]
        )
        for one in versions:
            waiting.add_metric(one.labels, one.waiting_rows)
        yield waiting
        yield _counter(
            "headrace_shed", "Predictions not computed: no_permit, late, expired, left.",
            "reason", [(one.labels, one.shed) for one in versions],
        )  # fmt: skip


def _counter(
    name: str, documentation: str, label: str, values: list[tuple[tuple[str, str], Mapping[str, int]]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, documentation, labels=["model", "version", label])
    for labels, counts in values:
        for value, count in counts.items():
            family.add_metric([*labels, value], count)
    return family


def _histogram(
    name: str, documentation: str, values: list[tuple[tuple[str, str], HistogramCounts]]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, documentation, labels=["model", "version"])
    for labels, histogram in values:
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip([*histogram.bounds, float("inf")], histogram.counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), total))
        family.add_metric(labels, buckets, histogram.sum)
    return family
