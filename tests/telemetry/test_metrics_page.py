from pathlib import Path

from headrace_server.telemetry.metrics_page import render


def test_the_page_of_metrics_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "metrics.md"

    assert page.read_text() == render(), "run: python -m headrace_server.telemetry.metrics_page > docs/metrics.md"
