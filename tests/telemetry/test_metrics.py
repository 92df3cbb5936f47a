import re

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from headrace_server.telemetry.metrics import JOB_SECONDS, LATENCY_SECONDS, ROWS, Metrics

# Ids, names that callers make up, and free text would make as many series as there are callers.  Names of sinks are the
# operator's, in the settings.
ALLOWED_LABELS = {"method", "code", "model", "version", "outcome", "reason", "backend", "framework", "status", "cause",
                  "stream", "kind", "operation", "sink"}  # fmt: skip


def all_metrics(metrics: Metrics) -> dict[str, MetricWrapperBase]:
    return {name: value for name, value in vars(metrics).items() if isinstance(value, MetricWrapperBase)}


def test_every_metric_has_a_unit_or_is_a_count_and_says_what_it_means() -> None:
    for metric in all_metrics(Metrics()).values():
        description = next(iter(metric.describe()))
        assert re.fullmatch(r"[a-z][a-z_]*[a-z]", description.name)
        assert description.documentation.endswith(".")
        if description.type == "histogram":
            assert description.name.endswith(("_seconds", "_rows", "_steps"))


def test_labels_never_hold_what_callers_make_up() -> None:
    for metric in all_metrics(Metrics()).values():
        assert set(metric._labelnames) <= ALLOWED_LABELS


def test_everything_is_in_the_registry_and_can_be_read_by_prometheus() -> None:
    metrics = Metrics()
    for metric in all_metrics(metrics).values():
        labelled = metric.labels(*("x" for _ in metric._labelnames)) if metric._labelnames else metric
        getattr(labelled, "inc", None) and labelled.inc()  # type: ignore[attr-defined]
        getattr(labelled, "observe", None) and labelled.observe(1)  # type: ignore[attr-defined]

    families = {family.name for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())}

    assert {next(iter(metric.describe())).name for metric in all_metrics(metrics).values()} <= families


def test_two_servers_in_one_process_do_not_share_numbers() -> None:
    first, second = Metrics(), Metrics()

    first.internal_errors.inc()

    assert isinstance(first.registry, CollectorRegistry)
    assert first.registry.get_sample_value("headrace_internal_errors_total") == 1
    assert second.registry.get_sample_value("headrace_internal_errors_total") == 0


def test_buckets_rise() -> None:
    for buckets in (LATENCY_SECONDS, ROWS, JOB_SECONDS):
        assert list(buckets) == sorted(set(buckets))
