"""Happenings, events and log lines survive the wire."""

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, strategies as st

from headrace.training.v1 import training_event_pb2 as pb, training_job_pb2 as job_pb
from headrace_server.errors import Invalid
from headrace_server.rpc.wire import events as wire
from headrace_server.trainers.reports import EvaluationCompleted, PhaseChanged, StepCompleted, WarningRaised
from headrace_server.training.events import (
    CheckpointSaved,
    Event,
    Happening,
    LogEntry,
    LogLine,
    LogSource,
    ModelRegistered,
    StateChanged,
)
from headrace_server.training.states import JobState

INT64 = st.integers(0, 2**63 - 1)
INT32 = st.integers(0, 2**31 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
FLOATS = st.floats(allow_nan=False)
# Whole nanoseconds that a double holds exactly enough to find them again.
SECONDS = st.integers(0, 2**50).map(lambda nanos: nanos / 1_000_000_000)
METRICS = st.dictionaries(TEXT, FLOATS, max_size=5)
TIMES = st.datetimes(timezones=st.just(UTC))

STEPS = st.builds(
    StepCompleted,
    step=INT64,
    epoch=INT32,
    fraction=FLOATS,
    loss=FLOATS,
    metrics=METRICS,
    learning_rate=FLOATS,
    samples_per_second=FLOATS,
    step_seconds=st.dictionaries(TEXT, SECONDS, max_size=5),
    remaining_seconds=st.none() | SECONDS,
)
EVALUATIONS = st.builds(
    EvaluationCompleted, step=INT64, epoch=INT32, metrics=METRICS, is_best=st.booleans(), num_rows=INT64
)
CHECKPOINTS = st.builds(CheckpointSaved, uri=TEXT, digest=TEXT, step=INT64, is_best=st.booleans(), size_bytes=INT64)
PHASES = st.builds(PhaseChanged, phase=TEXT)
WARNINGS = st.builds(WarningRaised, code=TEXT, message=TEXT)
CHANGES = st.builds(
    StateChanged,
    from_state=st.none() | st.sampled_from(JobState),
    to_state=st.sampled_from(JobState),
    reason=TEXT,
    message=TEXT,
)
HAPPENINGS: st.SearchStrategy[Happening] = st.one_of(
    STEPS, EVALUATIONS, CHECKPOINTS, PHASES, WARNINGS, CHANGES, st.builds(ModelRegistered, model_version=TEXT)
)
LINES = st.builds(LogLine, source=st.sampled_from(LogSource), text=TEXT)


@given(st.builds(Event, sequence=INT64, time=TIMES, happening=HAPPENINGS))
def test_an_event_comes_back_as_it_went_through_bytes(event: Event) -> None:
    sent = wire.event_to_proto(event).SerializeToString()

    assert wire.event_from_proto(pb.TrainingEvent.FromString(sent)) == event


@given(st.builds(LogEntry, sequence=INT64, time=TIMES, line=LINES))
def test_a_log_entry_comes_back_as_it_went_through_bytes(entry: LogEntry) -> None:
    sent = wire.log_entry_to_proto(entry).SerializeToString()

    assert wire.log_entry_from_proto(pb.LogLine.FromString(sent)) == entry


@given(st.floats(-1e11, 1e11))
def test_a_duration_is_right_to_the_nanosecond(seconds: float) -> None:
    message = wire.duration_to_proto(seconds)

    assert message is not None
    assert abs(message.seconds + message.nanos / 1e9 - seconds) <= max(1e-9, math.ulp(seconds))
    assert message.seconds * message.nanos >= 0, "both parts have one sign"
    assert abs(message.nanos) < 1_000_000_000
    assert message.ToTimedelta() is not None


@given(st.integers(-(2**53), 2**53))
def test_nanoseconds_that_a_double_can_tell_apart_come_back(nanos: int) -> None:
    message = Duration(seconds=int(nanos / 1e9), nanos=0)
    message.FromNanoseconds(nanos)

    back = wire.duration_to_proto(wire.duration_from_proto(message))

    assert back is not None
    assert abs(back.ToNanoseconds() - nanos) <= 1
    assert wire.duration_to_proto(wire.duration_from_proto(back)) == back


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, 1e12, -1e12])
def test_a_span_that_the_contract_cannot_hold_is_left_out(seconds: float) -> None:
    step = StepCompleted(
        step=1,
        epoch=1,
        fraction=0.5,
        loss=math.nan,
        learning_rate=0.1,
        samples_per_second=1,
        step_seconds={"data": seconds, "forward": 0.25},
        remaining_seconds=seconds,
    )

    message = wire.step_to_proto(step)

    assert not message.HasField("remaining")
    assert {part: time.ToMilliseconds() for part, time in message.step_time.items()} == {"forward": 250}
    assert math.isnan(message.loss), "a loss that is no number is what happened, and is told"


def test_a_moment_in_another_zone_is_the_same_moment() -> None:
    noon = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30)))

    assert wire.time_from_proto(wire.time_to_proto(noon)) == noon


def test_the_change_that_ends_a_job_carries_the_job() -> None:
    end = StateChanged(from_state=JobState.FINALIZING, to_state=JobState.SUCCEEDED, reason="MODEL_REGISTERED")
    event = Event(sequence=9, time=datetime.now(UTC), happening=end)

    message = wire.event_to_proto(event, job_pb.TrainingJob(name="trainingJobs/j", model_version="models/m/versions/1"))

    assert message.state_changed.job.name == "trainingJobs/j"
    assert message.state_changed.to == job_pb.TrainingJob.STATE_SUCCEEDED
    assert wire.event_from_proto(message) == event


def test_the_first_change_leaves_no_state() -> None:
    first = StateChanged(from_state=None, to_state=JobState.QUEUED, reason="ADMITTED")

    message = wire.happening_to_proto(first)

    assert isinstance(message, pb.StateChanged)
    assert getattr(message, "from") == job_pb.TrainingJob.STATE_UNSPECIFIED


def test_every_state_has_its_name_in_the_contract() -> None:
    for state in JobState:
        assert job_pb.TrainingJob.State.Name(wire.state_to_proto(state)) == f"STATE_{state}"
        assert wire.state_from_proto(wire.state_to_proto(state)) is state


@pytest.mark.parametrize(
    "message",
    [
        pb.TrainingEvent(sequence=1),
        pb.TrainingEvent(sequence=1, state_changed=pb.StateChanged(reason="X")),
    ],
)
def test_what_has_no_meaning_here_is_refused(message: pb.TrainingEvent) -> None:
    with pytest.raises(Invalid):
        wire.event_from_proto(message)


def test_a_line_without_a_source_is_refused() -> None:
    with pytest.raises(Invalid):
        wire.log_line_from_proto(pb.LogLine(text="x"))


def test_a_message_that_is_no_happening_is_refused() -> None:
    with pytest.raises(Invalid):
        wire.happening_from_proto(pb.LogLine(text="x"))
