"""Traces of some steps of a training."""

import gzip
import json
import queue
from pathlib import Path

import pytest

from headrace_server.trainers.loop import Outcome
from headrace_server.trainers.profiling import TRACE, Profiling
from headrace_server.trainers.reports import ProfileWritten, WarningRaised
from tests.doubles.loop_run import RECIPE, Run


@pytest.fixture
def requests() -> "queue.SimpleQueue[int]":
    return queue.SimpleQueue()


def test_the_steps_that_were_asked_for_are_recorded(tmp_path: Path, requests: "queue.SimpleQueue[int]") -> None:
    run = Run(tmp_path / "c", RECIPE, profiling=lambda report: Profiling(tmp_path / "profiles", requests, report))
    requests.put(3)
    requests.put(2)

    assert run.go() is Outcome.COMPLETED

    (written,) = [report for report in run.reports if isinstance(report, ProfileWritten)]
    assert (written.first_step, written.num_steps) == (1, 3)
    trace = json.loads(gzip.decompress((Path(written.folder) / TRACE).read_bytes()))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert "aten::linear" in names
    assert "aten::_fused_adamw_" in names
    (warning,) = [report for report in run.reports if isinstance(report, WarningRaised)]
    assert warning.code == "PROFILE_BUSY"


def test_a_recording_ends_with_the_training(tmp_path: Path, requests: "queue.SimpleQueue[int]") -> None:
    run = Run(
        tmp_path / "c",
        RECIPE,
        stop_after=2,
        profiling=lambda report: Profiling(tmp_path / "profiles", requests, report),
    )
    requests.put(1000)

    assert run.go() is Outcome.STOPPED

    (written,) = [report for report in run.reports if isinstance(report, ProfileWritten)]
    assert (written.first_step, written.num_steps) == (1, 2)


def test_a_disk_that_refuses_fails_no_training(tmp_path: Path, requests: "queue.SimpleQueue[int]") -> None:
    (tmp_path / "profiles").touch()  # no folder can be made in a file
    run = Run(tmp_path / "c", RECIPE, profiling=lambda report: Profiling(tmp_path / "profiles", requests, report))
    requests.put(1)

    assert run.go() is Outcome.COMPLETED

    assert [report.code for report in run.reports if isinstance(report, WarningRaised)] == ["PROFILE_FAILED"]
