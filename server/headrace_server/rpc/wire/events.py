"""Happenings, events and log lines, between our own types and the contract's messages, both ways.

Knows no call and no connection.  Times are exact to the microsecond that ours hold, durations to the nanosecond that
the contract holds.  A duration that the contract cannot hold (nan, infinite, longer than 10,000 years) is left out.
"""

import math
from datetime import UTC, datetime
from typing import Any, Literal, assert_never

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from headrace.training.v1 import training_event_pb2 as pb, training_job_pb2 as job_pb
from headrace_server.errors import Invalid, Violation
from headrace_server.trainers.reports import EvaluationCompleted, PhaseChanged, StepCompleted, WarningRaised
from headrace_server.training.events import (
    CheckpointSaved,
    Event,
    Happening,
    LogEntry,
    LogLine,
    LogSource,
    ModelRegistered,
    ProfileRecorded,
    StateChanged,
)
from headrace_server.training.states import JobState

_NANOS = 1_000_000_000
_MAX_DURATION_SECONDS = 315_576_000_000  # what google.protobuf.Duration may hold


def time_to_proto(time: datetime) -> Timestamp:
    """The same moment.  `time` must be aware."""
    assert time.tzinfo is not None, "a time without a zone is no moment"
    message = Timestamp()
    message.FromDatetime(time)
    return message


def time_from_proto(message: Timestamp) -> datetime:
    """The same moment, in UTC, cut to the microsecond."""
    return message.ToDatetime(tzinfo=UTC)


def duration_to_proto(seconds: float) -> Duration | None:
    """The same span, rounded to the nanosecond; None for what a Duration cannot hold."""
    if not math.isfinite(seconds) or abs(seconds) >= _MAX_DURATION_SECONDS:
        return None
    whole = math.trunc(seconds)
    nanos = round((seconds - whole) * _NANOS)  # the difference is exact: both are doubles of like size
    if abs(nanos) == _NANOS:
        whole, nanos = whole + (1 if nanos > 0 else -1), 0
    return Duration(seconds=whole, nanos=nanos)


def duration_from_proto(message: Duration) -> float:
    """The same span in seconds, as the nearest double."""
    return (message.seconds * _NANOS + message.nanos) / _NANOS


def step_to_proto(step: StepCompleted) -> job_pb.StepCompleted:
    """A training step, as an event and as a job's `latest_step` carry it."""
    message = job_pb.StepCompleted(
        step=step.step,
        epoch=step.epoch,
        fraction=step.fraction,
        loss=step.loss,
        metrics=step.metrics,
        learning_rate=step.learning_rate,
        samples_per_second=step.samples_per_second,
        model_flops_utilization=step.model_flops_utilization,
        gradient_norm=step.gradient_norm,
        skipped_steps=step.skipped_steps,
    )
    for part, seconds in step.step_seconds.items():
        if (duration := duration_to_proto(seconds)) is not None:
            message.step_time[part].CopyFrom(duration)
    if step.remaining_seconds is not None and (left := duration_to_proto(step.remaining_seconds)) is not None:
        message.remaining.CopyFrom(left)
    return message


def step_from_proto(message: job_pb.StepCompleted) -> StepCompleted:
    """The inverse of `step_to_proto`."""
    return StepCompleted(
        step=message.step,
        epoch=message.epoch,
        fraction=message.fraction,
        loss=message.loss,
        metrics=dict(message.metrics),
        learning_rate=message.learning_rate,
        samples_per_second=message.samples_per_second,
        step_seconds={part: duration_from_proto(time) for part, time in message.step_time.items()},
        remaining_seconds=duration_from_proto(message.remaining) if message.HasField("remaining") else None,
        model_flops_utilization=_optional(message, "model_flops_utilization"),
        gradient_norm=_optional(message, "gradient_norm"),
        skipped_steps=message.skipped_steps,
    )


def _optional(
    message: job_pb.StepCompleted, field: Literal["model_flops_utilization", "gradient_norm"]
) -> float | None:
    return float(getattr(message, field)) if message.HasField(field) else None


def evaluation_to_proto(evaluation: EvaluationCompleted) -> pb.EvaluationCompleted:
    """An evaluation of held-out rows."""
    return pb.EvaluationCompleted(
        step=evaluation.step,
        epoch=evaluation.epoch,
        metrics=evaluation.metrics,
        is_best=evaluation.is_best,
        num_rows=evaluation.num_rows,
    )


def evaluation_from_proto(message: pb.EvaluationCompleted) -> EvaluationCompleted:
    """The inverse of `evaluation_to_proto`."""
    return EvaluationCompleted(
        step=message.step,
        epoch=message.epoch,
        metrics=dict(message.metrics),
        is_best=message.is_best,
        num_rows=message.num_rows,
    )


def checkpoint_to_proto(checkpoint: CheckpointSaved) -> job_pb.CheckpointSaved:
    """A checkpoint, as an event and as a job's `latest_checkpoint` carry it."""
    return job_pb.CheckpointSaved(
        uri=checkpoint.uri,
        digest=checkpoint.digest,
        step=checkpoint.step,
        is_best=checkpoint.is_best,
        size_bytes=checkpoint.size_bytes,
    )


def checkpoint_from_proto(message: job_pb.CheckpointSaved) -> CheckpointSaved:
    """The inverse of `checkpoint_to_proto`."""
    return CheckpointSaved(
        uri=message.uri,
        digest=message.digest,
        step=message.step,
        is_best=message.is_best,
        size_bytes=message.size_bytes,
    )


def state_to_proto(state: JobState | None) -> job_pb.TrainingJob.State.ValueType:
    """The contract's name of a state; unspecified for None."""
    return job_pb.TrainingJob.State.Value(f"STATE_{state or 'UNSPECIFIED'}")


def state_from_proto(value: job_pb.TrainingJob.State.ValueType) -> JobState | None:
    """The inverse of `state_to_proto`.  Raises Invalid for a state that is never sent."""
    name = job_pb.TrainingJob.State.Name(value).removeprefix("STATE_")
    if name == "UNSPECIFIED":
        return None
    try:
        return JobState(name)
    except ValueError:
        raise _invalid("state", f"{name} is never sent") from None


def happening_to_proto(happening: Happening) -> Message:
    """The message of one kind.  A StateChanged comes without its job, which only an event at the end carries."""
    match happening:
        case StepCompleted():
            return step_to_proto(happening)
        case EvaluationCompleted():
            return evaluation_to_proto(happening)
        case CheckpointSaved():
            return checkpoint_to_proto(happening)
        case PhaseChanged():
            return pb.PhaseChanged(phase=happening.phase)
        case WarningRaised():
            return pb.WarningRaised(code=happening.code, message=happening.message)
        case ModelRegistered():
            return pb.ModelRegistered(model_version=happening.model_version)
        case ProfileRecorded():
            return pb.ProfileRecorded(**happening.model_dump(exclude={"kind"}))
        case StateChanged():
            return _state_changed_to_proto(happening)
        case _:
            assert_never(happening)


def happening_from_proto(message: Message) -> Happening:
    """The inverse of `happening_to_proto`; the job that a StateChanged may carry is left behind.

    Raises Invalid for a message of any other kind.
    """
    match message:
        case job_pb.StepCompleted():
            return step_from_proto(message)
        case pb.EvaluationCompleted():
            return evaluation_from_proto(message)
        case job_pb.CheckpointSaved():
            return checkpoint_from_proto(message)
        case pb.PhaseChanged():
            return PhaseChanged(phase=message.phase)
        case pb.WarningRaised():
            return WarningRaised(code=message.code, message=message.message)
        case pb.ModelRegistered():
            return ModelRegistered(model_version=message.model_version)
        case pb.ProfileRecorded():
            return ProfileRecorded(
                first_step=message.first_step,
                num_steps=message.num_steps,
                uri=message.uri,
                digest=message.digest,
                size_bytes=message.size_bytes,
            )
        case pb.StateChanged():
            return _state_changed_from_proto(message)
        case _:
            raise _invalid("kind", f"{message.DESCRIPTOR.full_name} is no entry of a history")


def _state_changed_to_proto(change: StateChanged) -> pb.StateChanged:
    # `from` is a word of Python's.
    ends: dict[str, Any] = {"from": state_to_proto(change.from_state), "to": state_to_proto(change.to_state)}
    return pb.StateChanged(**ends, reason=change.reason, message=change.message)


def _state_changed_from_proto(message: pb.StateChanged) -> StateChanged:
    to_state = state_from_proto(message.to)
    if to_state is None:
        raise _invalid("state_changed.to", "is not set")
    return StateChanged(
        from_state=state_from_proto(getattr(message, "from")),
        to_state=to_state,
        reason=message.reason,
        message=message.message,
    )


def event_to_proto(event: Event, job: job_pb.TrainingJob | None = None) -> pb.TrainingEvent:
    """One entry of a history.

    `job`, the job as it ended, belongs to the StateChanged that ends it and to no other event.
    """
    message = pb.TrainingEvent(sequence=event.sequence, time=time_to_proto(event.time))
    kind = happening_to_proto(event.happening)
    if job is not None:
        assert isinstance(kind, pb.StateChanged), "only the change to a terminal state carries the job"
        kind.job.CopyFrom(job)
    getattr(message, event.happening.kind).CopyFrom(kind)
    return message


def event_from_proto(message: pb.TrainingEvent) -> Event:
    """The inverse of `event_to_proto`.  Raises Invalid for an event whose kind is not known."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise _invalid("event.kind", "is not set, or from a later release")
    return Event(
        sequence=message.sequence,
        time=time_from_proto(message.time),
        happening=happening_from_proto(getattr(message, kind)),
    )


def log_line_to_proto(line: LogLine) -> pb.LogLine:
    """One line, without a place in a log."""
    return pb.LogLine(source=pb.LogLine.Source.Value(f"SOURCE_{line.source}"), text=line.text)


def log_line_from_proto(message: pb.LogLine) -> LogLine:
    """The inverse of `log_line_to_proto`.  Raises Invalid for a line without a source."""
    name = pb.LogLine.Source.Name(message.source).removeprefix("SOURCE_")
    if name == "UNSPECIFIED":
        raise _invalid("log_line.source", "is not set")
    return LogLine(source=LogSource(name), text=message.text)


def log_entry_to_proto(entry: LogEntry) -> pb.LogLine:
    """One line of a log with its place and time."""
    message = log_line_to_proto(entry.line)
    message.sequence = entry.sequence
    message.time.CopyFrom(time_to_proto(entry.time))
    return message


def log_entry_from_proto(message: pb.LogLine) -> LogEntry:
    """The inverse of `log_entry_to_proto`."""
    return LogEntry(sequence=message.sequence, time=time_from_proto(message.time), line=log_line_from_proto(message))


def _invalid(field: str, description: str) -> Invalid:
    return Invalid(f"{field}: {description}", [Violation(field, description)])
