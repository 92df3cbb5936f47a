"""The kinds of entries in a job's history, and the lines of its log.

What a trainer reports becomes an entry as it is; the others are the server's own.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from headrace_server.trainers.reports import EvaluationCompleted, PhaseChanged, StepCompleted, WarningRaised
from headrace_server.training.states import JobState


class _Kind(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StateChanged(_Kind):
    """The job moved to another state.  The job itself, which the contract adds at the end, is added by the reader."""

    kind: Literal["state_changed"] = "state_changed"
    from_state: JobState | None
    """None in the first event."""
    to_state: JobState
    reason: str
    """UPPER_SNAKE_CASE, for programs."""
    message: str = ""


class CheckpointSaved(_Kind):
    """A checkpoint is complete, verified and durable."""

    kind: Literal["checkpoint_saved"] = "checkpoint_saved"
    uri: str
    """The key of its manifest in the store."""
    digest: str
    step: int
    is_best: bool
    size_bytes: int


class ModelRegistered(_Kind):
    """The result is registered and may be served."""

    kind: Literal["model_registered"] = "model_registered"
    model_version: str


class ProfileRecorded(_Kind):
    """A trace of some steps is in the store."""

    kind: Literal["profile_recorded"] = "profile_recorded"
    first_step: int
    num_steps: int
    uri: str
    """Its key in the store."""
    digest: str
    size_bytes: int


Happening = Annotated[
    StateChanged
    | StepCompleted
    | EvaluationCompleted
    | CheckpointSaved
    | PhaseChanged
    | WarningRaised
    | ModelRegistered
    | ProfileRecorded,
    Field(discriminator="kind"),
]
HAPPENING: TypeAdapter[Happening] = TypeAdapter(Happening)


class LogSource(StrEnum):
    """Where a line came from."""

    STDOUT = "STDOUT"
    STDERR = "STDERR"
    WORKER = "WORKER"


class LogLine(_Kind):
    """One line that the trainer or its worker wrote; at most 8,192 characters."""

    kind: Literal["log_line"] = "log_line"
    source: LogSource
    text: str


class Event(_Kind):
    """One numbered entry of a job's history."""

    sequence: int
    """1 for the first, then one more each."""
    time: datetime
    happening: Happening


class LogEntry(_Kind):
    """One numbered line of a job's log."""

    sequence: int
    time: datetime
    line: LogLine
