"""What is counted for one model version, by the batcher itself and for both doors: metrics and statistics are views."""

from headrace_server import _native
from headrace_server.inference.prediction import Timing
from headrace_server.inference.tally import Runs, Statistics
from headrace_server.models.version import ModelVersion
from headrace_server.telemetry.metrics import LATENCY_SECONDS, ROWS
from headrace_server.telemetry.predictions import HistogramCounts, PredictionCounts


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
