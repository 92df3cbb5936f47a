"""Every metric on one page: name, unit, labels, meaning.

Labels hold models, versions, trainers, states and reasons; never ids, and never text that a caller made up.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from headrace_server.telemetry.calls import CallMetrics
from headrace_server.telemetry.predictions import PredictionMetrics

# Small models answer in a fraction of a millisecond; the default buckets would put all of them into the first one.
LATENCY_SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60,
)  # fmt: skip
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
STEPS = (0, 1, 10, 100, 1_000, 10_000, 100_000)
JOB_SECONDS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 72 * 3600, 168 * 3600)


class Metrics:
    """All metrics of one server, in a registry of their own, so that two servers can live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        # Calls (gRPC).
        self.calls = Counter(
            "headrace_calls", "Calls that ended, by method and status code.", ["method", "code"], registry=None
        )
        self.call_seconds = Histogram(
            "headrace_call_duration_seconds", "From the first byte of a call to its status, by method.",
            ["method"], buckets=LATENCY_SECONDS, registry=None,
        )  # fmt: skip
        self.calls_in_flight = Gauge("headrace_calls_in_flight", "Calls under way, streams included.", registry=None)
        self.passed_calls = Counter(
            "headrace_passed_calls",
            "Predictions and the like that the native door left to the complete server, by why: draining, request, "
            "name, signature, left, output.",
            ["method", "reason"], registry=None,
        )  # fmt: skip
        self.native_calls = CallMetrics(
            self.calls, self.call_seconds, self.calls_in_flight, self.passed_calls, LATENCY_SECONDS
        )
        registry.register(self.native_calls)
        self.internal_errors = Counter(
            "headrace_internal_errors", "Faults of the server itself, which callers saw as INTERNAL.", registry=registry
        )

        # Predictions.
        self.predictions = PredictionMetrics()
        registry.register(self.predictions)
        self.cache_lookups = Counter(
            "headrace_cache_lookups", "Questions to models with a cache, by what answered: memory, redis, miss.",
            ["model", "outcome"], registry=registry,
        )  # fmt: skip
        self.cache_bytes = Gauge("headrace_cache_bytes", "Answers kept in memory.", registry=registry)
        self.cache_entries = Gauge("headrace_cache_entries", "Answers kept in memory, in number.", registry=registry)
        self.cache_redis_failures = Counter(
            "headrace_cache_redis_failures", "Commands to Redis that failed or came too late: look, get, put.",
            ["operation"], registry=registry,
        )  # fmt: skip
        self.snapshot_lag_steps = Histogram(
            "headrace_snapshot_lag_steps", "Steps of its job since the checkpoint that answered a prediction.",
            buckets=STEPS, registry=registry,
        )  # fmt: skip
        self.snapshot_age_seconds = Histogram(
            "headrace_snapshot_age_seconds", "Age of the checkpoint that answered a prediction.",
            buckets=(*LATENCY_SECONDS[9:], *JOB_SECONDS[4:]), registry=registry,
        )  # fmt: skip
        self.loaded_versions = Gauge("headrace_loaded_versions", "Model versions in memory.", registry=registry)
        self.load_seconds = Histogram(
            "headrace_model_load_duration_seconds", "Loading and warming up one version, by backend.",
            ["backend"], buckets=LATENCY_SECONDS, registry=registry,
        )  # fmt: skip

        # Training.
        self.jobs = Counter(
            "training_jobs", "Jobs that reached a terminal state, by trainer and state.",
            ["framework", "status"], registry=registry,
        )  # fmt: skip
        self.job_seconds = Histogram(
            "training_duration_seconds", "From the first worker of a job to its end, by trainer and state.",
            ["framework", "status"], buckets=JOB_SECONDS, registry=registry,
        )  # fmt: skip
        self.active_jobs = Gauge("active_training_jobs", "Jobs that have a worker.", registry=registry)
        self.queued_jobs = Gauge("headrace_queued_jobs", "Jobs that wait for their turn.", registry=registry)
        self.job_queue_seconds = Histogram(
            "headrace_job_queue_duration_seconds", "From admission to the first worker.",
            buckets=(*LATENCY_SECONDS, *JOB_SECONDS[4:]), registry=registry,
        )  # fmt: skip
        self.worker_restarts = Counter(
            "headrace_worker_restarts", "Workers that were lost and replaced, by cause: died, silent, fenced.",
            ["cause"], registry=registry,
        )  # fmt: skip
        self.warm_workers = Gauge("headrace_warm_workers", "Workers that wait for a job.", registry=registry)
        self.preemptions = Counter(
            "headrace_preemptions", "Jobs that gave their place to one of higher priority.", registry=registry
        )
        self.progress_lag_seconds = Histogram(
            "headrace_progress_lag_seconds", "From an event in the worker until it is durable here.",
            buckets=LATENCY_SECONDS, registry=registry,
        )  # fmt: skip
        self.journal_appends = Counter(
            "headrace_journal_entries", "Entries appended, by stream: events, logs.", ["stream"], registry=registry
        )
        self.journal_readers = Gauge(
            "headrace_journal_readers",
            "Streams that follow a job; those who read along at the native door count as one.",
            ["stream"],
            registry=registry,
        )
        self.stream_resumes = Counter(
            "headrace_stream_resumes", "Streams that began after a cursor.", ["stream"], registry=registry
        )
        self.sink_entries = Counter(
            "headrace_sink_entries",
            "Entries of histories that sinks are done with: sent, failed (refused for good), dropped (no longer kept).",
            ["sink", "outcome"], registry=registry,
        )  # fmt: skip
        self.sink_failures = Counter(
            "headrace_sink_failures", "Calls of sinks that failed: unavailable, hangs, refused, raised.",
            ["sink", "reason"], registry=registry,
        )  # fmt: skip
        self.sink_waiting_entries = Gauge(
            "headrace_sink_waiting_entries", "Entries of histories that a sink has not had.",
            ["sink"], registry=registry,
        )  # fmt: skip

        # Storage.
        self.stored_bytes = Counter(
            "headrace_stored_bytes", "Bytes written to the store, by kind: dataset, model, checkpoint.",
            ["kind"], registry=registry,
        )  # fmt: skip
