"""What an agent and the server say to each other, between our own types and the private contract's messages, both ways.

Knows no call and no connection.  Both ends are of the same release: what has no meaning here raises Invalid.
"""

from typing import assert_never

from headrace_server.errors import Invalid, Violation
from headrace_server.names import JobName
from headrace_server.rpc.wire.events import (
    happening_from_proto,
    happening_to_proto,
    log_line_from_proto,
    log_line_to_proto,
    time_from_proto,
    time_to_proto,
)
from headrace_server.trainers.reports import EvaluationCompleted, PhaseChanged, StepCompleted, WarningRaised
from headrace_server.training.events import CheckpointSaved, LogLine, ModelRegistered, ProfileRecorded, StateChanged
from headrace_server.training.session import (
    Command,
    Exported,
    Outcome,
    ProfileWorker,
    ReportContent,
    StopWorker,
    TrainerEnded,
    WorkerHello,
    WorkerReport,
)
from headrace_server.worker.v1 import worker_service_pb2 as pb


def hello_to_proto(hello: WorkerHello) -> pb.Hello:
    """Who attaches."""
    return pb.Hello(job=str(hello.job), attempt=hello.attempt, token=hello.token, pid=hello.pid, host=hello.host)


def hello_from_proto(message: pb.Hello) -> WorkerHello:
    """The inverse of `hello_to_proto`.  Raises InvalidName for a job's name of the wrong form."""
    return WorkerHello(
        job=JobName.parse(message.job, "hello.job"),
        attempt=message.attempt,
        token=message.token,
        pid=message.pid,
        host=message.host,
    )


def command_to_proto(command: Command) -> pb.AttachResponse:
    """What an agent is told to do."""
    if isinstance(command, ProfileWorker):
        return pb.AttachResponse(profile=pb.Profile(num_steps=command.num_steps))
    return pb.AttachResponse(stop=stop_to_proto(command))


def stop_to_proto(stop: StopWorker) -> pb.Stop:
    """How to end the trainer."""
    mode = pb.Stop.MODE_KILL if stop.kill else pb.Stop.MODE_GRACEFUL
    return pb.Stop(mode=mode, grace_seconds=stop.grace_seconds)


def stop_from_proto(message: pb.Stop) -> StopWorker:
    """The inverse of `stop_to_proto`.  Raises Invalid for a stop without a mode."""
    if message.mode not in (pb.Stop.MODE_GRACEFUL, pb.Stop.MODE_KILL):
        raise _invalid("stop.mode", "is not set")
    return StopWorker(kill=message.mode == pb.Stop.MODE_KILL, grace_seconds=message.grace_seconds)


def report_to_proto(report: WorkerReport) -> pb.Report:
    """One report.  Raises ValueError for a figure that the contract cannot hold, such as a step above 2**63."""
    message = pb.Report(number=report.number, time=time_to_proto(report.time))
    content = report.content
    match content:
        case LogLine():
            message.log_line.CopyFrom(log_line_to_proto(content))
        case Exported():
            message.exported.manifest_key = content.manifest_key
        case TrainerEnded():
            message.trainer_ended.CopyFrom(_ended_to_proto(content))
        case (
            StepCompleted()
            | EvaluationCompleted()
            | CheckpointSaved()
            | PhaseChanged()
            | WarningRaised()
            | ProfileRecorded()
        ):
            getattr(message, content.kind).CopyFrom(happening_to_proto(content))
        case _:
            assert_never(content)
    return message


def report_from_proto(message: pb.Report) -> WorkerReport:
    """The inverse of `report_to_proto`.  Raises Invalid for a report without content or number."""
    if message.number < 1:
        raise _invalid("report.number", f"is {message.number}; the first is 1")
    return WorkerReport(number=message.number, time=time_from_proto(message.time), content=_content_from_proto(message))


def _content_from_proto(message: pb.Report) -> ReportContent:
    match message.WhichOneof("kind"):
        case None:
            raise _invalid("report.kind", "is not set")
        case "log_line":
            return log_line_from_proto(message.log_line)
        case "exported":
            return Exported(manifest_key=message.exported.manifest_key)
        case "trainer_ended":
            return _ended_from_proto(message.trainer_ended)
        case kind:
            happening = happening_from_proto(getattr(message, kind))
            assert not isinstance(happening, (StateChanged, ModelRegistered)), "the contract has no such report"
            return happening


def _ended_to_proto(ended: TrainerEnded) -> pb.TrainerEnded:
    return pb.TrainerEnded(
        outcome=pb.TrainerEnded.Outcome.Value(f"OUTCOME_{ended.outcome}"),
        exit_code=ended.exit_code,
        signal=ended.signal,
        out_of_memory=ended.out_of_memory,
        error=ended.error,
        message=ended.message,
        last_lines=ended.last_lines,
        num_killed=ended.num_killed,
    )


def _ended_from_proto(message: pb.TrainerEnded) -> TrainerEnded:
    name = pb.TrainerEnded.Outcome.Name(message.outcome).removeprefix("OUTCOME_")
    if name == "UNSPECIFIED":
        raise _invalid("trainer_ended.outcome", "is not set")
    return TrainerEnded(
        outcome=Outcome(name),
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        signal=message.signal,
        out_of_memory=message.out_of_memory,
        error=message.error,
        message=message.message,
        last_lines=tuple(message.last_lines),
        num_killed=message.num_killed,
    )


def _invalid(field: str, description: str) -> Invalid:
    return Invalid(f"{field}: {description}", [Violation(field, description)])
