"""What an agent and the server say to each other survives the wire."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, strategies as st

from headrace.training.v1.training_event_pb2 import LogLine as LogLinePb
from headrace_server.errors import Invalid, InvalidName
from headrace_server.names import JobName
from headrace_server.rpc.wire import worker as wire
from headrace_server.trainers.reports import EvaluationCompleted, PhaseChanged, StepCompleted, WarningRaised
from headrace_server.training.events import CheckpointSaved, LogLine, LogSource
from headrace_server.training.session import Exported, Outcome, StopWorker, TrainerEnded, WorkerHello, WorkerReport
from headrace_server.worker.v1 import worker_service_pb2 as pb

INT64 = st.integers(0, 2**63 - 1)
INT32 = st.integers(-(2**31), 2**31 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
FLOATS = st.floats(allow_nan=False)
SECONDS = st.integers(0, 2**50).map(lambda nanos: nanos / 1_000_000_000)

ENDS = st.builds(
    TrainerEnded,
    outcome=st.sampled_from(Outcome),
    exit_code=st.none() | INT32,
    signal=TEXT,
    out_of_memory=st.booleans(),
    error=TEXT,
    message=TEXT,
    last_lines=st.lists(TEXT, max_size=5).map(tuple),
    num_killed=INT32,
)
CONTENTS = st.one_of(
    st.builds(
        StepCompleted,
        step=INT64,
        epoch=INT32,
        fraction=FLOATS,
        loss=FLOATS,
        metrics=st.dictionaries(TEXT, FLOATS, max_size=3),
        learning_rate=FLOATS,
        samples_per_second=FLOATS,
        step_seconds=st.dictionaries(TEXT, SECONDS, max_size=3),
        remaining_seconds=st.none() | SECONDS,
    ),
    st.builds(
        EvaluationCompleted,
        step=INT64,
        epoch=INT32,
        metrics=st.dictionaries(TEXT, FLOATS, max_size=3),
        is_best=st.booleans(),
        num_rows=INT64,
    ),
    st.builds(CheckpointSaved, uri=TEXT, digest=TEXT, step=INT64, is_best=st.booleans(), size_bytes=INT64),
    st.builds(PhaseChanged, phase=TEXT),
    st.builds(WarningRaised, code=TEXT, message=TEXT),
    st.builds(LogLine, source=st.sampled_from(LogSource), text=TEXT),
    st.builds(Exported, manifest_key=TEXT),
    ENDS,
)
REPORTS = st.builds(
    WorkerReport, number=st.integers(1, 2**63 - 1), time=st.datetimes(timezones=st.just(UTC)), content=CONTENTS
)
IDS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


@given(REPORTS)
def test_a_report_comes_back_as_it_went_through_bytes(report: WorkerReport) -> None:
    sent = wire.report_to_proto(report).SerializeToString()

    assert wire.report_from_proto(pb.Report.FromString(sent)) == report


@given(st.builds(WorkerHello, job=st.builds(JobName, IDS), attempt=INT32, token=TEXT, pid=INT32, host=TEXT))
def test_a_hello_comes_back_as_it_went_through_bytes(hello: WorkerHello) -> None:
    sent = wire.hello_to_proto(hello).SerializeToString()

    assert wire.hello_from_proto(pb.Hello.FromString(sent)) == hello


@given(st.builds(StopWorker, kill=st.booleans(), grace_seconds=FLOATS))
def test_a_stop_comes_back_as_it_went_through_bytes(stop: StopWorker) -> None:
    sent = wire.stop_to_proto(stop).SerializeToString()

    assert wire.stop_from_proto(pb.Stop.FromString(sent)) == stop


def test_every_kind_of_report_in_the_contract_is_known() -> None:
    kinds = {field.name for field in pb.Report.DESCRIPTOR.oneofs_by_name["kind"].fields}

    for kind in kinds:
        message = pb.Report(number=1)
        getattr(message, kind).SetInParent()
        match kind:
            case "log_line":
                message.log_line.source = LogLinePb.SOURCE_STDOUT
            case "trainer_ended":
                message.trainer_ended.outcome = pb.TrainerEnded.OUTCOME_DIED
        assert wire.report_to_proto(wire.report_from_proto(message)).WhichOneof("kind") == kind


def test_an_exit_code_of_zero_is_not_an_absent_one() -> None:
    with_code, without = (
        wire.report_to_proto(WorkerReport(1, datetime.now(UTC), TrainerEnded(Outcome.FINISHED, exit_code=code)))
        for code in (0, None)
    )

    assert with_code.trainer_ended.HasField("exit_code")
    assert not without.trainer_ended.HasField("exit_code")


def test_a_figure_that_the_contract_cannot_hold_raises() -> None:
    evaluation = EvaluationCompleted(step=2**63, epoch=1, metrics={}, is_best=False, num_rows=1)

    with pytest.raises(ValueError, match="range"):
        wire.report_to_proto(WorkerReport(1, datetime.now(UTC), evaluation))


@pytest.mark.parametrize(
    "message",
    [
        pb.Report(number=1),
        pb.Report(number=0, exported=pb.Exported(manifest_key="k")),
        pb.Report(number=1, trainer_ended=pb.TrainerEnded()),
    ],
)
def test_a_report_that_says_nothing_is_refused(message: pb.Report) -> None:
    with pytest.raises(Invalid):
        wire.report_from_proto(message)


def test_a_stop_without_a_mode_is_refused() -> None:
    with pytest.raises(Invalid):
        wire.stop_from_proto(pb.Stop(grace_seconds=1))


def test_a_hello_with_a_bad_name_is_refused() -> None:
    with pytest.raises(InvalidName):
        wire.hello_from_proto(pb.Hello(job="jobs/x"))
