"""The log: one JSON object a line for machines, or text for people; the libraries' own logging comes the same way.

Every line has a time, a level and an event; then fields, among them the id of the call that it belongs to.  Lines are
made where they are logged and written by a thread, so that a slow reader of the log never holds up the event loop.
When it is too slow for too long, lines are left out, and the log says how many.
"""

import contextlib
import logging
import logging.handlers
import queue
import sys
import threading
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, Self, TextIO

import structlog

from headrace_server.settings import TelemetrySettings

MOST_WAITING_LINES = 20_000
LAST_SECONDS = 2.0
"""How long a reader of the log may keep a process that wants to end."""

_Lines = queue.Queue[logging.LogRecord | None]
_FIRST = ("time", "level", "event")


class Log:
    """Writes the log of this process while it is open: `with Log(settings): …`.

    Logging belongs to the process; so there is one at a time, and on its way out it puts back what was there.
    """

    def __init__(self, settings: TelemetrySettings, stream: TextIO | None = None) -> None:
        self._settings = settings
        self._stream = sys.stderr if stream is None else stream
        waiting: _Lines = queue.Queue(MOST_WAITING_LINES)
        self._handler = _Waiting(waiting)
        self._handler.setFormatter(_formatter(settings))
        self._writer = _Writer(waiting, self._stream)
        self._before: list[logging.Handler] = []

    def __enter__(self) -> Self:
        level = logging.getLevelName(self._settings.log_level)
        structlog.configure(
            processors=[*_shared(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
            wrapper_class=structlog.make_filtering_bound_logger(level),
            logger_factory=structlog.stdlib.LoggerFactory(),
            cache_logger_on_first_use=False,
        )
        root = logging.getLogger()
        self._before, root.handlers = root.handlers, [self._handler]
        root.setLevel(max(level, logging.WARNING))  # libraries speak up when something is wrong
        logging.getLogger("headrace_server").setLevel(level)
        logging.captureWarnings(True)
        self._writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.captureWarnings(False)
        root = logging.getLogger()
        root.handlers = self._before
        root.setLevel(logging.WARNING)
        structlog.reset_defaults()
        self._writer.finish(self._handler.num_left_out)


class _Waiting(logging.handlers.QueueHandler):
    """Hands lines to the writing thread; when too many wait, leaves them out and counts them."""

    def __init__(self, waiting: "_Lines") -> None:
        super().__init__(waiting)
        self._waiting = waiting
        self.num_left_out = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        """Never waits."""
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self.num_left_out += 1


class _Writer(threading.Thread):
    """Writes lines one after another; whoever reads them may be slow, stuck or gone."""

    def __init__(self, waiting: "_Lines", stream: TextIO) -> None:
        super().__init__(name="headrace-log", daemon=True)
        self._waiting = waiting
        self._stream = stream

    def run(self) -> None:
        """Write until there is nothing more to come."""
        while (record := self._waiting.get()) is not None:
            with contextlib.suppress(OSError, ValueError):  # nobody reads any more
                self._stream.write(f"{record.getMessage()}\n")
                if self._waiting.empty():
                    self._stream.flush()

    def finish(self, num_left_out: int) -> None:
        """Write what still waits, unless the reader is stuck."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=LAST_SECONDS)
            self.join(LAST_SECONDS)
        if not self.is_alive():
            with contextlib.suppress(OSError, ValueError):
                if num_left_out:
                    self._stream.write(f'{{"event": "log.left_out", "lines": {num_left_out}}}\n')
                self._stream.flush()


def _shared() -> list[Any]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.StackInfoRenderer(),
    ]


def _formatter(settings: TelemetrySettings) -> logging.Formatter:
    if settings.log_format == "json":
        render: list[Any] = [
            structlog.processors.format_exc_info,
            _in_order,
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        render = [structlog.dev.ConsoleRenderer(timestamp_key="time", colors=False)]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_shared(), structlog.stdlib.add_logger_name],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
    )


def _in_order(_logger: object, _method: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    return {**{key: event.get(key) for key in _FIRST}, **{key: event[key] for key in event if key not in _FIRST}}
