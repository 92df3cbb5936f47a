"""What one transaction changes about one job: its state, its worker, and the entries that tell of it.

An amendment is filled in by plain functions that look and decide without waiting; `jobs.py` then writes all of it, or
nothing.  So a state and the event that announces it can never be apart.  Knows no database.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from headrace_server.errors import IllegalTransition, WorkerFenced
from headrace_server.training.attempt import Attempt
from headrace_server.training.events import CheckpointSaved, Event, Happening, LogEntry, LogLine, StateChanged
from headrace_server.training.job import Failure, Job
from headrace_server.training.rows import StoredJob
from headrace_server.training.states import JobState


class Amendment:
    """A job as it is inside one transaction, and what is to be added to its histories."""

    def __init__(self, stored: StoredJob, *, latest_log: int, now: datetime) -> None:
        self.now = now
        self._job = stored.job
        self._attempt = stored.attempt
        self._events: list[Event] = []
        self._log: list[LogEntry] = []
        self._latest_log = latest_log
        self._passed: list[tuple[JobState, JobState, str]] = []
        self._is_changed = False

    @property
    def job(self) -> Job:
        """The job with what was changed so far."""
        return self._job

    @property
    def attempt(self) -> Attempt:
        """Its newest worker with what was changed so far."""
        return self._attempt

    @property
    def events(self) -> Sequence[Event]:
        """The events to add."""
        return self._events

    @property
    def log(self) -> Sequence[LogEntry]:
        """The lines to add."""
        return self._log

    @property
    def passed(self) -> Sequence[tuple[JobState, JobState, str]]:
        """The transitions so far: from, to, reason."""
        return self._passed

    @property
    def is_changed(self) -> bool:
        """Whether there is anything to write."""
        return self._is_changed

    def append(self, happening: Happening, time: datetime | None = None) -> None:
        """Add an event; `time` is now when it is not given."""
        sequence = self._job.latest_sequence + 1
        self._events.append(Event(sequence=sequence, time=time or self.now, happening=happening))
        self._change(latest_sequence=sequence)

    def write_line(self, line: LogLine, time: datetime) -> None:
        """Add a line to the log."""
        self._latest_log += 1
        self._log.append(LogEntry(sequence=self._latest_log, time=time, line=line))
        self._is_changed = True

    def move(self, to: JobState, reason: str, message: str = "") -> None:
        """Change the state, and say so in an event.  Raises IllegalTransition."""
        left = self._job.state
        if not left.may_become(to):
            raise IllegalTransition(str(self._job.name), left, f"turn to {to} (reason {reason})")
        self._change(state=to, state_message=message)
        if to.is_terminal:
            self._change(ended_at=self.now)
        self._passed.append((left, to, reason))
        self.append(StateChanged(from_state=left, to_state=to, reason=reason, message=message))

    def fail(self, reason: str, failure: Failure) -> None:
        """End the job as FAILED.  `reason` is the transition's; the failure has its own."""
        self._change(failure=failure)
        self.move(JobState.FAILED, reason, failure.message)

    def explain(self, message: str) -> None:
        """Say anew why the job is in its state."""
        self._change(state_message=message)

    def note_step(self, **fields: Any) -> None:
        """Change fields of the job that say how far it is: latest_step, latest_checkpoint, best_checkpoint…"""
        self._change(**fields)

    def note_checkpoint(self, checkpoint: CheckpointSaved) -> None:
        """Remember the newest checkpoint, and the best."""
        self._change(latest_checkpoint=checkpoint)
        if checkpoint.is_best:
            self._change(best_checkpoint=checkpoint)

    def begin_attempt(self, token: str) -> None:
        """Give the job to a new worker, whose secret is `token`; every earlier worker is fenced."""
        number = self._attempt.number + 1
        self._attempt = Attempt(number=number, token=token, evaluated_step=self._attempt.evaluated_step)
        self._change(attempt=number, started_at=self._job.started_at or self.now)

    def note_worker(self, **fields: Any) -> None:
        """Change fields of the newest worker."""
        self._attempt = self._attempt.model_copy(update=fields)
        self._is_changed = True

    def check_worker(self, attempt: int) -> None:
        """Raise WorkerFenced unless this attempt has the job."""
        current = self._attempt.number
        if attempt != current:
            raise WorkerFenced(attempt, current)
        if not self._job.state.has_worker:
            raise WorkerFenced(attempt, current + 1)

    def _change(self, **fields: Any) -> None:
        self._job = self._job.model_copy(update=fields)
        self._is_changed = True
