"""The rules for Prometheus are well formed, fire when they should, and speak of metrics that there are."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from headrace_server.telemetry.metrics_page import render

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: apt-get install prometheus")
@pytest.mark.parametrize(
    "command", [("check", "rules", "headrace.rules.yml"), ("test", "rules", "headrace.rules.test.yml")]
)
def test_the_rules_pass_prometheus_own_checks(command: tuple[str, ...]) -> None:
    assert PROMTOOL is not None
    checked = subprocess.run([PROMTOOL, *command], cwd=FOLDER, capture_output=True, text=True, timeout=240, check=False)

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_metric_that_a_rule_asks_for_is_one_of_ours() -> None:
    asked = set(re.findall(r"\bheadrace_[a-z_]+", (FOLDER / "headrace.rules.yml").read_text(encoding="utf-8")))

    assert asked
    assert asked <= set(re.findall(r"\bheadrace_[a-z_]+", render()))
