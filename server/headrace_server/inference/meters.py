"""What is counted for one model version, by the batcher itself and for both doors: metrics and statistics are views."""

from collections import OrderedDict
from collections.abc import Mapping

from headrace_server import _native
from headrace_server.inference.prediction import Timing
from headrace_server.inference.tally import Runs, Statistics
from headrace_server.models.snapshot import LABELS
from headrace_server.models.version import ModelVersion
from headrace_server.names import ModelName
from headrace_server.telemetry.metrics import LATENCY_SECONDS, ROWS
from headrace_server.telemetry.predictions import HistogramCounts, PredictionCounts

MOST_METERS = 4096


def new_meters() -> _native.Meters:
    """Meters with the buckets of all our histograms."""
    return _native.Meters(LATENCY_SECONDS, ROWS)


class Meters:
    """What is counted for one version, also while it is not loaded.  Safe to use from any thread.

    Calls that a batcher has refused or admitted are counted there; the others here.
    """

    def __init__(self, version: ModelVersion) -> None:
        self._labels = version.labels
        self.native = new_meters()

    def answered(self, timing: Timing, rows: int, seconds: float) -> None:
        """A prediction that no batcher has seen was answered, so long after it was asked for."""
        self.native.answered(
            rows, timing.queue_seconds, timing.assemble_seconds, timing.compute_seconds, timing.respond_seconds, seconds
        )

    def ended(self, outcome: str, seconds: float) -> None:
        """A prediction that no batcher has seen ended, so long after it was asked for."""
        self.native.ended(outcome, seconds)

    def responded(self, seconds: float) -> None:
        """A door had an answer ready, so long after the run ended."""
        self.native.responded(seconds)

    @property
    def last_call_at(self) -> float:
        """When the last call of any door ended, in seconds since 1970; 0 when there was none."""
        last: float = self.native.read()["last_call_at"]
        return last

    def counts(self, waiting_rows: int) -> PredictionCounts:
        """For the metrics; so many rows wait just now."""
        counts = self.native.read()
        return PredictionCounts(
            labels=self._labels,
            outcomes=counts["outcomes"],
            queue_seconds=HistogramCounts(*counts["queue_seconds_histogram"]),
            compute_seconds=HistogramCounts(*counts["compute_seconds_histogram"]),
            batch_rows=HistogramCounts(*counts["batch_rows_histogram"]),
            batches=counts["batches"],
            waiting_rows=waiting_rows,
            shed=counts["shed"],
        )

    def statistics(self) -> Statistics:
        """For those who ask the server itself."""
        counts = self.native.read()
        return Statistics(
            num_answered=counts["num_answered"],
            answered_seconds=counts["answered_seconds"],
            answered_rows=counts["answered_rows"],
            num_failed=counts["num_failed"],
            failed_seconds=counts["failed_seconds"],
            queue_seconds=counts["queue_seconds"],
            assemble_seconds=counts["assemble_seconds"],
            compute_seconds=counts["compute_seconds"],
            respond_seconds=counts["respond_seconds"],
            last_call_at=counts["last_call_at"] or None,
            runs={rows: Runs(*past) for rows, past in counts["runs"].items()},
        )


class MetersByVersion:
    """The meters of the versions that were loaded or asked last, some thousand of them."""

    def __init__(self) -> None:
        self._meters: OrderedDict[tuple[str, str], Meters] = OrderedDict()

    def of(self, version: ModelVersion) -> Meters:
        """Those of a version, from now on; of all checkpoints of all jobs together."""
        key = version.labels
        meters = self._meters.get(key)
        if meters is None:
            meters = self._meters[key] = Meters(version)
            if len(self._meters) > MOST_METERS:
                self._meters.popitem(last=False)
        return meters

    def statistics(self) -> dict[ModelName, Statistics]:
        """For those who ask the server itself."""
        return {
            ModelName(model, int(version)): meters.statistics()
            for (model, version), meters in self._meters.items()
            if (model, version) != LABELS  # all checkpoints of all jobs together, under no name
        }

    def counts(self, waiting: Mapping[tuple[str, str], int]) -> list[PredictionCounts]:
        """For the metrics, on the thread that serves them; `waiting` are the rows that wait just now, by labels."""
        return [meters.counts(waiting.get(labels, 0)) for labels, meters in list(self._meters.items())]
