import os
from pathlib import Path

import pytest

from headrace_server.selfcheck import Finding, Verdict, exit_code, look
from headrace_server.settings import Settings

OK = Finding("a", Verdict.OK, "")
WARNING = Finding("b", Verdict.WARNING, "")
BROKEN = Finding("c", Verdict.BROKEN, "")


@pytest.mark.parametrize(
    ("findings", "strict", "code"),
    [
        ([OK], True, 0),
        ([OK, WARNING], False, 0),
        ([OK, WARNING], True, 1),
        ([BROKEN, WARNING], True, 2),
        ([BROKEN], False, 2),
    ],
)
def test_the_worst_finding_decides(findings: list[Finding], strict: bool, code: int) -> None:
    assert exit_code(findings, strict=strict) == code


def test_torch_is_looked_at_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no wheels today')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    settings = Settings.model_validate(
        {"data": tmp_path / "d", "server": {"port": 0}, "telemetry": {"metrics_port": -1}}
    )

    findings = {finding.name: finding for finding in look(settings)}

    assert findings["torch"].verdict is Verdict.WARNING
    assert "no wheels today" in findings["torch"].detail
    assert findings["metrics port"].detail == "off"


def test_a_tracker_that_cannot_be_had_is_broken(tmp_path: Path) -> None:
    def findings_with(kind: str) -> dict[str, Finding]:
        settings = Settings.model_validate(
            {
                "data": tmp_path / "d",
                "server": {"port": 0},
                "telemetry": {"metrics_port": -1},
                "training": {"sinks": [{"kind": kind, "options": {"folder": "runs"}}]},
            }
        )
        return {finding.name: finding for finding in look(settings)}

    assert findings_with("tensorboard")["sinks"] == Finding("sinks", Verdict.OK, "tensorboard")
    broken = findings_with("nobody")["sinks"]
    assert broken.verdict is Verdict.BROKEN
    assert "there is no kind 'nobody'" in broken.detail


def test_a_folder_that_cannot_be_made_is_broken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = Settings.model_validate(
        {"data": tmp_path / "file" / "data", "server": {"port": 0}, "telemetry": {"metrics_port": -1}}
    )

    findings = {finding.name: finding for finding in look(settings)}

    assert findings["data folder"].verdict is Verdict.BROKEN
