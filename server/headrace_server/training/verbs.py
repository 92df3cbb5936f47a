"""What may be asked of a job, and what it means in each state.

Plain functions on an amendment.  `is_clear` says whether no process of any worker of the job is left, for certain.
Each returns the job as it is then, and raises IllegalTransition where the verb has no meaning.
"""

from typing import Protocol

from headrace_server.errors import IllegalTransition
from headrace_server.training.amendment import Amendment
from headrace_server.training.job import Job
from headrace_server.training.states import JobState


class Verb(Protocol):
    """Changes a job as somebody asked."""

    def __call__(self, amendment: Amendment, /, *, is_clear: bool) -> Job:
        """Returns the job as it is then."""
        ...


def cancel(amendment: Amendment, reason: str, *, is_clear: bool) -> Job:
    """Cancel a job at once when it has no worker, else begin to.  Harmless when repeated, until it is over."""
    job = amendment.job
    because = _because(reason)
    if job.state.is_terminal:
        raise IllegalTransition(str(job.name), job.state, "cancel")
    if job.state is JobState.QUEUED:
        amendment.move(JobState.CANCELLED, "CANCELLED", f"cancelled before it began{because}")
    elif job.state is JobState.PAUSED:
        amendment.move(JobState.CANCELLED, "CANCELLED", f"cancelled while it was paused{because}")
    elif job.state is JobState.RECOVERING and is_clear:
        message = f"cancelled while it had no worker, so no process had to be killed{because}"
        amendment.move(JobState.CANCELLED, "CANCELLED", message)
    elif job.state is not JobState.CANCELLING:
        amendment.move(JobState.CANCELLING, "CANCEL_REQUESTED", f"asked to stop{because}")
    return amendment.job


def pause(amendment: Amendment, reason: str, *, is_clear: bool) -> Job:
    """Pause a job at once when it has no worker, else begin to.  Harmless when repeated.

    A job that is giving way to another is paused instead of waiting again.
    """
    job = amendment.job
    because = _because(reason)
    match job.state:
        case JobState.PAUSED:
            pass
        case JobState.PAUSING:
            if amendment.attempt.is_preempted:
                amendment.note_worker(is_preempted=False)
        case JobState.QUEUED:
            amendment.move(JobState.PAUSED, "PAUSED", f"paused while it waited for its turn{because}")
        case JobState.RECOVERING if is_clear:
            amendment.move(JobState.PAUSED, "PAUSED", f"paused while it had no worker{because}")
        case JobState.PREPARING | JobState.RUNNING | JobState.RECOVERING:
            amendment.move(JobState.PAUSING, "PAUSE_REQUESTED", f"asked to pause{because}")
        case _:
            raise IllegalTransition(str(job.name), job.state, "pause")
    return amendment.job


def resume(amendment: Amendment) -> Job:
    """Let a paused job wait for its turn again.  Harmless when it waits already."""
    job = amendment.job
    if job.state is JobState.PAUSED:
        amendment.move(JobState.QUEUED, "RESUMED", "resumed on request")
    elif job.state is not JobState.QUEUED:
        raise IllegalTransition(str(job.name), job.state, "resume")
    return amendment.job


def preempt(amendment: Amendment, by: str, *, is_clear: bool) -> Job:
    """Begin to take a job's place for `by`, a job of higher priority; nothing where it is about to leave it anyway."""
    message = f"{by} of higher priority waits"
    match amendment.job.state:
        case JobState.RECOVERING if is_clear:
            amendment.move(JobState.QUEUED, "PREEMPTED", message)
        case JobState.PREPARING | JobState.RUNNING | JobState.RECOVERING:
            amendment.note_worker(is_preempted=True)
            amendment.move(JobState.PAUSING, "PREEMPTED", message)
        case _:
            pass
    return amendment.job


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""
