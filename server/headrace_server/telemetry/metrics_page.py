"""Writes the page that lists every metric: `python -m headrace_server.telemetry.metrics_page > docs/metrics.md`."""

import sys
from collections.abc import Iterator
from typing import Any

from prometheus_client.metrics import MetricWrapperBase

from headrace_server.telemetry.metrics import Metrics
from headrace_server.telemetry.predictions import PredictionMetrics

HEAD = """# Metrics

Served for Prometheus on `telemetry.metrics_host`:`telemetry.metrics_port`, by default `127.0.0.1:9464/metrics`. Labels
hold models, versions, trainers, methods, states and reasons; never ids, and never text that a caller made up.

<!-- Written by `python -m headrace_server.telemetry.metrics_page > docs/metrics.md`; a test compares. -->

| name | type | unit | labels | meaning |
|---|---|---|---|---|
"""


def render() -> str:
    """The whole page, in the order of `metrics.py`."""
    return HEAD + "".join(_rows(Metrics()))


def _rows(metrics: Metrics) -> Iterator[str]:
    for metric in vars(metrics).values():
        if not isinstance(metric, MetricWrapperBase | PredictionMetrics):
            continue
        for family in metric.describe():
            name = family.name + ("_total" if family.type == "counter" else "")
            # Not to be had otherwise; a family made by hand has its own.
            labelled: Any = metric if isinstance(metric, MetricWrapperBase) else family
            labels = ", ".join(f"`{label}`" for label in labelled._labelnames)  # noqa: SLF001
            yield f"| `{name}` | {family.type} | {_unit(family.name)} | {labels} | {family.documentation} |\n"


def _unit(name: str) -> str:
    return next((unit for unit in ("seconds", "bytes", "rows") if name.endswith(unit)), "")


if __name__ == "__main__":
    sys.stdout.write(render())
