"""The metrics of one model version, with their labels bound once."""

from headrace_server.inference.batch import Batch, Reason
from headrace_server.inference.prediction import Timing
from headrace_server.inference.tally import Tally
from headrace_server.models.version import ModelVersion
from headrace_server.telemetry.metrics import Metrics


class Meters:
    """What is counted for one version.  Safe to use from any thread."""

    def __init__(self, metrics: Metrics, version: ModelVersion) -> None:
        self._metrics = metrics
        self._labels = labels = version.labels
        self._ok = metrics.predictions.labels(*labels, "ok")
        self._queue_seconds = metrics.queue_seconds.labels(*labels)
        self._compute_seconds = metrics.compute_seconds.labels(*labels)
        self._batch_rows = metrics.batch_rows.labels(*labels)
        self._batches = {reason: metrics.batches.labels(*labels, reason.value) for reason in Reason}
        self.waiting_rows = metrics.waiting_rows.labels(*labels)
        self.tally = Tally()

    def answered(self, timing: Timing, rows: int, seconds: float) -> None:
        """A prediction for so many rows ended well, so long after it was asked for."""
        self._ok.inc()
        self._queue_seconds.observe(timing.queue_seconds)
        self.tally.answered(timing, rows, seconds)

    def ended(self, outcome: str, seconds: float) -> None:
        """A prediction ended otherwise, so long after it was asked for."""
        self._metrics.predictions.labels(*self._labels, outcome).inc()
        self.tally.failed(seconds)

    def shed(self, reason: str) -> None:
        """A prediction was not computed: no_permit, expired, left."""
        self._metrics.shed.labels(*self._labels, reason).inc()

    def ran(self, batch: Batch, compute_seconds: float) -> None:
        """A batch was computed."""
        self._compute_seconds.observe(compute_seconds)
        self._batch_rows.observe(batch.rows)
        self._batches[batch.reason].inc()
        self.tally.ran(batch.rows, batch.assemble_seconds, compute_seconds)
