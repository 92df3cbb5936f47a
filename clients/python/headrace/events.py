"""What happened in a job, as values to `match` on.

    async for event in run.follow():
        match event.content:
            case StepCompleted(loss=loss): ...
            case EvaluationCompleted(metrics=metrics): ...
            case StateChanged(): ...

The contents are the contract's own messages, so every field of the contract is there and nothing is said twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias, cast

from headrace.training.v1.training_event_pb2 import (
    EvaluationCompleted,
    ModelRegistered,
    PhaseChanged,
    ProfileRecorded,
    StateChanged,
    TrainingEvent,
    WarningRaised,
)
from headrace.training.v1.training_job_pb2 import CheckpointSaved, StepCompleted, TrainingJob

EventContent: TypeAlias = (
    StateChanged
    | StepCompleted
    | EvaluationCompleted
    | CheckpointSaved
    | PhaseChanged
    | WarningRaised
    | ModelRegistered
    | ProfileRecorded
)

_TERMINAL = frozenset(
    {TrainingJob.State.STATE_SUCCEEDED, TrainingJob.State.STATE_FAILED, TrainingJob.State.STATE_CANCELLED}
)


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a job's history."""

    sequence: int
    """1 for the first; only ever grows."""
    time: datetime
    """When it happened; UTC."""
    kind: str
    """The contract's name of the kind: "step_completed"…; empty when this release does not know it."""
    content: EventContent | None
    """None when this release does not know the kind: a newer server may send more kinds."""

    @classmethod
    def of(cls, message: TrainingEvent) -> "Event":
        """Read the contract's message."""
        kind = message.WhichOneof("kind")
        return cls(
            sequence=message.sequence,
            time=message.time.ToDatetime(UTC),
            kind=kind or "",
            content=None if kind is None else cast("EventContent", getattr(message, kind)),
        )

    @property
    def ends_the_job(self) -> bool:
        """Whether nothing can follow."""
        return isinstance(self.content, StateChanged) and self.content.to in _TERMINAL


def has_ended(job: TrainingJob) -> bool:
    """Whether the job is in a terminal state."""
    return job.state in _TERMINAL


def state_name(state: TrainingJob.State.ValueType) -> str:
    """ "RUNNING" for STATE_RUNNING; the number for a state that this release does not know."""
    return _STATE_NAMES.get(state, str(state))


def updated(job: TrainingJob, event: Event) -> TrainingJob:
    """The job after `event`: a copy, or the finished job itself when the event carries it."""
    after = TrainingJob()
    after.CopyFrom(job)
    after.latest_sequence = max(job.latest_sequence, event.sequence)
    match event.content:
        case StateChanged() as change:
            if change.HasField("job"):
                after.CopyFrom(change.job)
            else:
                after.state, after.state_message = change.to, change.message
        case StepCompleted() as step:
            after.latest_step.CopyFrom(step)
        case CheckpointSaved() as checkpoint:
            after.latest_checkpoint.CopyFrom(checkpoint)
        case ModelRegistered() as registered:
            after.model_version = registered.model_version
        case _:
            pass
    return after


_STATE_NAMES: Mapping[int, str] = {number: name.removeprefix("STATE_") for name, number in TrainingJob.State.items()}
