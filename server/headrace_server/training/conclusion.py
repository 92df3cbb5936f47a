"""What the end of a worker means for its job: over, or to be continued by another worker.

Plain functions on an amendment; whoever calls them has seen to it that no process of the worker is left where that
matters.
"""

from dataclasses import dataclass

from headrace_server.names import ModelName
from headrace_server.training.amendment import Amendment
from headrace_server.training.events import ModelRegistered
from headrace_server.training.job import Failure, Job
from headrace_server.training.recording import LONGEST_LAST_LINE, MOST_LAST_LINES, begin_finalizing
from headrace_server.training.session import Outcome, TrainerEnded
from headrace_server.training.states import JobState

STORE_LOST = "STORE_LOST"
"""Why a job failed whose results nobody could keep."""

# Kinds of errors that a trainer names and that the contract has a word for.
_REASONS = {
    "InvalidDataset": "INVALID_DATASET",
    "DeviceOutOfMemory": "DEVICE_OUT_OF_MEMORY",
    "StoreLost": STORE_LOST,
}


@dataclass(frozen=True, slots=True)
class Silence:
    """A worker that was given up: it never came, it went silent, its process is gone, or it did not end in time."""

    description: str
    """For people: "the worker was silent for 4 s"."""
    counts: bool = True
    """Whether it counts against the job's restarts."""
    last_lines: tuple[str, ...] = ()
    """What its agent wrote last, when it never said anything itself."""
    num_killed: int = 0


def is_final(job: Job, silence: Silence, *, is_leaving: bool) -> bool:
    """Whether giving up a worker ends or pauses the job: its processes must then be gone before that is said."""
    return job.state.is_ending or is_leaving or (silence.counts and job.restarts >= job.spec.max_restarts)


def conclude_success(amendment: Amendment, version: ModelName) -> None:
    """The result is registered: say so, and end the job.  A job that was cancelled meanwhile stays cancelled."""
    if amendment.job.state is JobState.CANCELLING:
        conclude_cancel(amendment, num_killed=0)
        return
    begin_finalizing(amendment)
    amendment.note_step(model_version=str(version))
    amendment.append(ModelRegistered(model_version=str(version)))
    amendment.move(JobState.SUCCEEDED, "MODEL_REGISTERED", f"registered as {version}")


def conclude_end(amendment: Amendment, ended: TrainerEnded, *, is_leaving: bool) -> None:
    """A trainer ended, other than by finishing its work."""
    if amendment.job.state is JobState.CANCELLING:
        conclude_cancel(amendment, num_killed=ended.num_killed)
        return
    match ended.outcome:
        case Outcome.FAILED:
            _fail(amendment, ended)
        case _ if amendment.job.state is JobState.PAUSING:
            conclude_pause(amendment, num_killed=ended.num_killed)
        case Outcome.STOPPED:
            # Told to by this server, by one before it, or by whoever looks after the machine: not a loss.
            _suspend(amendment)
        case Outcome.DIED if is_leaving:
            _suspend(amendment)
        case Outcome.DIED | Outcome.FINISHED:
            _lose(amendment, "TRAINER_DIED", _describe(ended), _evidence(ended))


def conclude_silence(amendment: Amendment, silence: Silence, *, is_leaving: bool) -> None:
    """A worker was given up."""
    if amendment.job.state is JobState.CANCELLING:
        conclude_cancel(amendment, num_killed=silence.num_killed)
    elif amendment.job.state is JobState.PAUSING:
        conclude_pause(amendment, num_killed=silence.num_killed)
    elif is_leaving:
        _suspend(amendment)
    elif not silence.counts:
        amendment.move(JobState.RECOVERING, "WORKER_LOST", f"{silence.description}; {_next(amendment.job)}")
    else:
        evidence = {
            "exit_code": "",
            "signal": "",
            "out_of_memory": "false",
            "num_killed": str(silence.num_killed),
            "last_lines": _join(silence.last_lines),
        }
        _lose(amendment, "WORKER_LOST", silence.description, evidence)


def conclude_refusal(amendment: Amendment, reason: str, failure: Failure) -> None:
    """The job cannot go on for a reason of its own, such as a data set that is gone."""
    if amendment.job.state.is_terminal:
        return
    if amendment.job.state is JobState.CANCELLING:
        conclude_cancel(amendment, num_killed=0)
    else:
        amendment.fail(reason, failure)


def conclude_cancel(amendment: Amendment, *, num_killed: int) -> None:
    """A job that was being cancelled has no worker any more."""
    amendment.move(JobState.CANCELLED, "CANCELLED", f"stopped on request; {describe_killed(num_killed)}")


def conclude_pause(amendment: Amendment, *, num_killed: int) -> None:
    """A job that was being paused has no worker any more: it rests, or waits again when another took its place."""
    message = f"{describe_killed(num_killed)}; {_next(amendment.job)}"
    if amendment.attempt.is_preempted:
        amendment.move(JobState.QUEUED, "PREEMPTED", f"gave way to a job of higher priority; {message}")
    else:
        amendment.move(JobState.PAUSED, "PAUSED", f"paused on request; {message}")


def conclude_without_worker(amendment: Amendment) -> None:
    """A job that was asked to end or to rest between two workers has none to wait for."""
    if amendment.job.state is JobState.CANCELLING:
        conclude_cancel(amendment, num_killed=0)
    elif amendment.job.state is JobState.PAUSING:
        conclude_pause(amendment, num_killed=0)


def describe_killed(num_killed: int) -> str:
    """How many processes had to be killed, for people."""
    match num_killed:
        case 0:
            return "no process had to be killed"
        case 1:
            return "1 process had to be killed"
        case _:
            return f"{num_killed} processes had to be killed"


def _suspend(amendment: Amendment) -> None:
    message = f"the worker had to leave, and ended as it was told; {_next(amendment.job)}"
    amendment.move(JobState.RECOVERING, "SERVER_DRAINING", message)


def _fail(amendment: Amendment, ended: TrainerEnded) -> None:
    reason = _REASONS.get(ended.error, "TRAINER_FAILED")
    message = f"{ended.error or 'the trainer'}: {ended.message or 'failed without a message'}"
    failure = Failure(reason=reason, message=message, metadata={"error": ended.error, **_evidence(ended)})
    amendment.fail(STORE_LOST if reason == STORE_LOST else "TRAINER_FAILED", failure)


def _lose(amendment: Amendment, reason: str, description: str, evidence: dict[str, str]) -> None:
    """Count a lost worker, and let another continue, if the job may have one more."""
    job = amendment.job
    if job.restarts >= job.spec.max_restarts:
        message = f"{description}; the job has used up its {job.spec.max_restarts} restarts"
        metadata = {**evidence, "restarts": str(job.restarts)}
        amendment.fail("RESTARTS_EXHAUSTED", Failure(reason="WORKER_LOST", message=message, metadata=metadata))
        return
    amendment.note_step(restarts=job.restarts + 1)
    restart = f"restart {job.restarts + 1} of {job.spec.max_restarts}"
    amendment.move(JobState.RECOVERING, reason, f"{description}; {_next(job)} ({restart})")


def _next(job: Job) -> str:
    if job.latest_checkpoint is None:
        return "another begins again, there being no checkpoint yet"
    return f"another continues from the checkpoint at step {job.latest_checkpoint.step}"


def _describe(ended: TrainerEnded) -> str:
    if ended.outcome is Outcome.FINISHED:
        return "the trainer finished without an export"
    if not ended.signal and ended.exit_code is None:
        return f"the worker failed: {ended.last_lines[-1] if ended.last_lines else 'it did not say why'}"
    how = f"was ended by {ended.signal}" if ended.signal else f"exited with code {ended.exit_code} without a word"
    return f"the trainer {how}{' because memory ran out' if ended.out_of_memory else ''}"


def _evidence(ended: TrainerEnded) -> dict[str, str]:
    return {
        "exit_code": "" if ended.exit_code is None else str(ended.exit_code),
        "signal": ended.signal,
        "out_of_memory": str(ended.out_of_memory).lower(),
        "num_killed": str(ended.num_killed),
        "last_lines": _join(ended.last_lines),
    }


def _join(lines: tuple[str, ...]) -> str:
    return "\n".join(line[:LONGEST_LAST_LINE] for line in lines[-MOST_LAST_LINES:])
