"""Calls of both servers on one page."""

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from headrace_server.telemetry.calls import CallCounts, MethodCounts
from headrace_server.telemetry.metrics import LATENCY_SECONDS, Metrics

SECONDS = [0, 2, *[0] * (len(LATENCY_SECONDS) - 2), 1]


def test_calls_that_were_counted_elsewhere_are_added_to_those_that_were_counted_here() -> None:
    metrics = Metrics()
    metrics.calls.labels("s/M", "OK").inc(5)
    metrics.calls_in_flight.inc(2)
    metrics.call_seconds.labels("s/M").observe(0.00005)

    metrics.native_calls.add_source(
        lambda: CallCounts(3, [MethodCounts("s/M", {"OK": 2, "CANCELLED": 1}, SECONDS, 61.0, {"name": 4})])
    )

    value = metrics.registry.get_sample_value
    assert value("headrace_calls_total", {"method": "s/M", "code": "OK"}) == 7
    assert value("headrace_calls_total", {"method": "s/M", "code": "CANCELLED"}) == 1
    assert value("headrace_calls_in_flight") == 5
    assert value("headrace_passed_calls_total", {"method": "s/M", "reason": "name"}) == 4
    assert value("headrace_call_duration_seconds_bucket", {"method": "s/M", "le": "0.0001"}) == 1
    assert value("headrace_call_duration_seconds_bucket", {"method": "s/M", "le": "0.00025"}) == 3
    assert value("headrace_call_duration_seconds_bucket", {"method": "s/M", "le": "+Inf"}) == 4
    assert value("headrace_call_duration_seconds_count", {"method": "s/M"}) == 4
    assert value("headrace_call_duration_seconds_sum", {"method": "s/M"}) == 61.00005


def test_methods_that_only_the_door_has_answered_are_shown_and_each_family_once() -> None:
    metrics = Metrics()
    metrics.native_calls.add_source(lambda: CallCounts(0, [MethodCounts("s/N", {"OK": 3}, SECONDS, 61.0, {})]))

    page = generate_latest(metrics.registry).decode()

    names = [family.name for family in text_string_to_metric_families(page)]
    assert len(names) == len(set(names))
    assert 'headrace_calls_total{code="OK",method="s/N"} 3.0' in page
    assert 'headrace_call_duration_seconds_bucket{le="+Inf",method="s/N"} 3.0' in page
