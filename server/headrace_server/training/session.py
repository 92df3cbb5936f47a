"""The server's end of one connection of an agent: reports come in, commands go out.

Knows no wire and no database: `ReportSink` decides what a report means and keeps it.  A session ends when its
connection is gone or when somebody newer has the job; it never outlives its attempt.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol, TypeAlias

from headrace_server.errors import WorkerFenced
from headrace_server.names import JobName
from headrace_server.trainers.reports import EvaluationCompleted, PhaseChanged, StepCompleted, WarningRaised
from headrace_server.training.events import CheckpointSaved, LogLine, ProfileRecorded

LARGEST_COMMIT = 512
"""Reports kept in one transaction; more are kept in several, so that one worker cannot hold the database for long."""


@dataclass(frozen=True, slots=True)
class WorkerHello:
    """Who attaches."""

    job: JobName
    attempt: int
    token: str
    pid: int
    """The agent's process, on its host."""
    host: str


class Outcome(StrEnum):
    """Why a trainer ended; names as in the contract of the worker."""

    FINISHED = "FINISHED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"
    DIED = "DIED"


@dataclass(frozen=True, slots=True)
class Exported:
    """The exported programs are in the store."""

    manifest_key: str
    """Of a PublishedExport (`assignment.py`)."""


@dataclass(frozen=True, slots=True)
class TrainerEnded:
    """The trainer is gone, and with it every process that it started.  The last report of an attempt."""

    outcome: Outcome
    exit_code: int | None = None
    """None when a signal ended it."""
    signal: str = ""
    """For example "SIGKILL"; empty when it exited."""
    out_of_memory: bool = False
    error: str = ""
    """The kind of error that the trainer named; empty unless FAILED."""
    message: str = ""
    last_lines: tuple[str, ...] = ()
    num_killed: int = 0
    """Processes of its tree that had to be killed."""


ReportContent: TypeAlias = (
    StepCompleted
    | EvaluationCompleted
    | CheckpointSaved
    | PhaseChanged
    | WarningRaised
    | LogLine
    | ProfileRecorded
    | Exported
    | TrainerEnded
)


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """One thing that happened in a worker."""

    number: int
    """Counted from 1 in each attempt, without gaps."""
    time: datetime
    content: ReportContent


@dataclass(frozen=True, slots=True)
class StopWorker:
    """Ends the trainer: with a checkpoint, within a grace period, or by force at once."""

    kill: bool
    grace_seconds: float


@dataclass(frozen=True, slots=True)
class ProfileWorker:
    """Has the trainer record the next steps."""

    num_steps: int


Command: TypeAlias = StopWorker | ProfileWorker


class ReportSink(Protocol):
    """Where a session takes what its agent says."""

    async def keep(self, session: "WorkerSession", reports: Sequence[WorkerReport]) -> int:
        """Make reports durable, each exactly once; returns the number of the last one that is kept.

        Raises WorkerFenced when the session's attempt no longer has the job.
        """
        ...

    def note_life(self, session: "WorkerSession", trainer_pid: int) -> None:
        """The agent gave a sign of life."""
        ...

    def note_gone(self, session: "WorkerSession") -> None:
        """The connection is gone; the agent may come back."""
        ...


class WorkerSession:
    """One connection of the agent of one attempt."""

    def __init__(self, sink: ReportSink, attempt: int, acknowledged: int) -> None:
        self.attempt = attempt
        self.acknowledged = acknowledged
        """The last report that is kept; the agent sends those after it."""
        self._sink = sink
        self._stops: list[StopWorker] = []  # at most two: a graceful one, then a kill
        self._profile: ProfileWorker | None = None  # the newest that was not sent yet
        self._bell = asyncio.Event()
        self._is_closed = False
        self._current: int | None = None

    async def receive(self, reports: Sequence[WorkerReport]) -> int:
        """Keep reports, in order, each exactly once, and return the number of the last one that is kept.

        Numbers that are kept already are passed over.  Raises WorkerFenced once a newer worker has the job.
        """
        for start in range(0, len(reports), LARGEST_COMMIT):
            self._check()
            self.acknowledged = await self._sink.keep(self, reports[start : start + LARGEST_COMMIT])
        return self.acknowledged

    def beat(self, trainer_pid: int) -> None:
        """Note a sign of life; `trainer_pid` is the trainer's process group, 0 while there is none."""
        if not self._is_closed:
            self._sink.note_life(self, trainer_pid)

    async def commands(self) -> AsyncIterator[Command]:
        """Yield commands as they are given; ends when the session is closed or fenced."""
        sent = 0
        while True:
            bell = self._bell  # taken before looking, so that no ring is missed
            while sent < len(self._stops):
                sent += 1
                yield self._stops[sent - 1]
            if self._profile is not None:
                profile, self._profile = self._profile, None
                yield profile
            if self._is_closed:
                return
            await bell.wait()

    def close(self) -> None:
        """Note that the connection is gone.  Harmless when repeated."""
        if not self._is_closed:
            self._end()
            self._sink.note_gone(self)

    def stop(self, command: StopWorker) -> None:
        """Tell the agent to stop its trainer.  Only what goes further than what was said before is said."""
        if self._is_closed or (self._stops and (self._stops[-1].kill or not command.kill)):
            return
        self._stops.append(command)
        self._ring()

    def profile(self, command: ProfileWorker) -> None:
        """Tell the agent to have steps recorded.  One that was not sent yet is forgotten for it."""
        self._profile = command
        self._ring()

    def fence(self, current: int) -> None:
        """End the session because attempt `current`, or another connection of the same attempt, has taken over."""
        if self._current is None:
            self._current = current
        self._end()

    @property
    def is_closed(self) -> bool:
        """Whether the connection is gone or fenced."""
        return self._is_closed

    def _check(self) -> None:
        if self._is_closed:
            raise WorkerFenced(self.attempt, self.attempt if self._current is None else self._current)

    def _end(self) -> None:
        self._is_closed = True
        self._ring()

    def _ring(self) -> None:
        self._bell.set()
        self._bell = asyncio.Event()
