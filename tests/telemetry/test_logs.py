import io
import json
import logging
import threading
import warnings
from pathlib import Path
from typing import Any

import structlog

from headrace_server.settings import TelemetrySettings
from headrace_server.telemetry import logs
from headrace_server.telemetry.logs import Log


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_its_event_its_fields_and_the_call_it_belongs_to() -> None:
    stream = io.StringIO()
    with Log(TelemetrySettings(), stream), structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger("headrace_server.x").info("training.checkpoint_saved", job="j", path=Path("/a"))

    (line,) = lines_of(stream)
    assert list(line)[:3] == ["time", "level", "event"]
    assert line["time"].endswith("Z")
    assert (line["level"], line["event"], line["job"], line["path"], line["request_id"]) == (
        "info", "training.checkpoint_saved", "j", "/a", "r1",
    )  # fmt: skip


def test_an_exception_is_one_line_with_its_trace() -> None:
    stream = io.StringIO()
    with Log(TelemetrySettings(), stream):
        try:
            raise ValueError("bad")
        except ValueError:
            structlog.get_logger("headrace_server.x").exception("it.failed")

    (line,) = lines_of(stream)
    assert "ValueError: bad" in line["exception"]


def test_libraries_and_warnings_come_the_same_way() -> None:
    stream = io.StringIO()
    with Log(TelemetrySettings(), stream), warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.getLogger("somebody").warning("careful with %s", "that")
        logging.getLogger("somebody").info("chatter")
        warnings.warn("old ways", stacklevel=1)

    said = lines_of(stream)
    assert [line["event"] for line in said][:1] == ["careful with that"]
    assert said[0]["logger"] == "somebody"
    assert "old ways" in said[1]["event"]


def test_less_than_the_level_is_left_out() -> None:
    stream = io.StringIO()
    with Log(TelemetrySettings(log_level="WARNING"), stream):
        log = structlog.get_logger("headrace_server.x")
        log.info("chatter")
        log.warning("look")

    assert [line["event"] for line in lines_of(stream)] == ["look"]


def test_text_for_people_is_no_json() -> None:
    stream = io.StringIO()
    with Log(TelemetrySettings(log_format="console"), stream):
        structlog.get_logger("headrace_server.x").info("house.open", port=1)

    assert "house.open" in stream.getvalue()
    assert "port=1" in stream.getvalue()


class StuckStream(io.StringIO):
    """Takes no line until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.may_write = threading.Event()

    def write(self, text: str) -> int:
        self.may_write.wait(20)
        return super().write(text)


def test_a_reader_who_is_stuck_costs_lines_and_holds_up_nobody(monkeypatch: Any) -> None:
    monkeypatch.setattr(logs, "MOST_WAITING_LINES", 10)
    stream = StuckStream()
    with Log(TelemetrySettings(), stream):
        log = structlog.get_logger("headrace_server.x")
        for number in range(100):
            log.info("line", number=number)
        stream.may_write.set()

    said = lines_of(stream)
    left_out = said[-1]
    assert left_out["event"] == "log.left_out"
    assert len(said) - 1 + left_out["lines"] == 100


def test_a_reader_who_never_reads_does_not_keep_the_process(monkeypatch: Any) -> None:
    monkeypatch.setattr(logs, "LAST_SECONDS", 0.05)
    stream = StuckStream()
    with Log(TelemetrySettings(), stream):
        structlog.get_logger("headrace_server.x").info("line")

    assert stream.getvalue() == ""
    stream.may_write.set()


def test_a_log_that_nobody_reads_any_more_disturbs_nobody() -> None:
    stream = io.StringIO()
    with Log(TelemetrySettings(), stream):
        stream.close()
        structlog.get_logger("headrace_server.x").info("line")
