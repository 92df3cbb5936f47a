"""Writes the page that lists every metric: `python -m headrace_server.telemetry.metrics_page > docs/metrics.md`."""

import sys
from collections.abc import Iterator

from prometheus_client.metrics import MetricWrapperBase

from headrace_server.telemetry.metrics import Metrics

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
        if isinstance(metric, MetricWrapperBase):
            family = next(iter(metric.describe()))
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)  # noqa: SLF001 - not to be had otherwise
            yield f"| `{name}` | {family.type} | {_unit(family.name)} | {labels} | {family.documentation} |\n"


def _unit(name: str) -> str:
    return next((unit for unit in ("seconds", "bytes", "rows") if name.endswith(unit)), "")


if __name__ == "__main__":
    sys.stdout.write(render())
