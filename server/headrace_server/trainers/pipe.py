"""The two ends of the line to the agent: reports go up, commands come down.  Knows no torch.

Nobody is left to train for when the agent is gone, so then the process ends at once, wherever it is.
"""

import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import NoReturn, assert_never

from pydantic import ValidationError

from headrace_server.trainers.reports import (
    TRAINER_COMMAND,
    ProfileCommand,
    StopCommand,
    TakeCommand,
    TrainerCommand,
    TrainerReport,
)

ABANDONED = 4
"""The exit code when the agent is gone."""
_MAX_COMMAND_BYTES = 65_536


class ReportPipe:
    """Writes one report a line, whole, from any thread.  Waits when the agent is slow to read."""

    def __init__(self, descriptor: int, abandon: Callable[[str], object]) -> None:
        self._descriptor, self._abandon = descriptor, abandon
        self._lock = threading.Lock()

    def write(self, report: TrainerReport) -> None:
        """Send a report; the process ends if nobody can read it any more."""
        line = memoryview(report.model_dump_json().encode() + b"\n")
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError as error:
                self._abandon(f"reports cannot be written: {error.strerror}")


class Commands:
    """What the agent wants; said in one thread and heeded in another."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.profiles: queue.SimpleQueue[int] = queue.SimpleQueue()
        """How many steps to record, for each time that the agent asked."""

    def obey(self, line: bytes) -> None:
        """Take a line; one that is no command is ignored, with a word about it."""
        try:
            command = TRAINER_COMMAND.validate_json(line)
        except ValidationError:
            os.write(sys.stderr.fileno(), b"trainer: a command that it does not know is ignored\n")
            return
        match command:
            case StopCommand():
                self.stop.set()
            case ProfileCommand(num_steps=num_steps):
                self.profiles.put(num_steps)
            case TakeCommand():
                os.write(sys.stderr.fileno(), b"trainer: it has a job already\n")
            case _:
                assert_never(command)


def follow_commands(descriptor: int, commands: Commands, abandon: Callable[[str], object]) -> None:
    """Read commands until the agent is gone, in a thread of its own that never keeps the process alive."""
    threading.Thread(target=_read_commands, args=(descriptor, commands, abandon), name="commands", daemon=True).start()


def read_command(descriptor: int) -> TrainerCommand | None:
    """Wait for one command; None when the agent is gone, or says something unknown.

    Reads byte by byte: what follows belongs to whoever reads next.
    """
    line = b""
    while (byte := os.read(descriptor, 1)) not in (b"", b"\n") and len(line) < _MAX_COMMAND_BYTES:
        line += byte
    try:
        return TRAINER_COMMAND.validate_json(line)
    except ValidationError:
        return None


def end_at_once(why: str) -> NoReturn:
    """End the process without cleaning up: there is nobody to clean up for."""
    os.write(sys.stderr.fileno(), f"trainer: {why}; ending at once\n".encode())
    os._exit(ABANDONED)


def _read_commands(descriptor: int, commands: Commands, abandon: Callable[[str], object]) -> None:
    # Not through a buffered reader: its lock would still be held by this thread when the process ends.
    rest = b""
    while read := os.read(descriptor, _MAX_COMMAND_BYTES):
        *lines, rest = (rest + read).split(b"\n")
        rest = rest[-_MAX_COMMAND_BYTES:]
        for line in lines:
            commands.obey(line)
    abandon("the agent is gone")
