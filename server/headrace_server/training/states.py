"""The states of a job and the only ways between them.

QUEUED → PREPARING → RUNNING → FINALIZING → SUCCEEDED
PREPARING, RUNNING, RECOVERING → PAUSING → PAUSED → QUEUED
PREPARING, RUNNING, RECOVERING → PAUSING → QUEUED     when a job of higher priority takes its place
PREPARING, RUNNING, FINALIZING → RECOVERING → PREPARING
any live state → CANCELLING → CANCELLED
any live state → FAILED

Without a worker there is nothing to wait for: QUEUED and RECOVERING may turn to PAUSED and CANCELLED at once, PAUSED to
CANCELLED, and RECOVERING to QUEUED.  A job that comes to its end while it is asked to pause has succeeded.
"""

from enum import StrEnum


class JobState(StrEnum):
    """Where a job is in its life; names as in the contract."""

    QUEUED = "QUEUED"
    PREPARING = "PREPARING"
    RUNNING = "RUNNING"
    FINALIZING = "FINALIZING"
    RECOVERING = "RECOVERING"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        """Whether the job is over; terminal states never change."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)

    @property
    def has_worker(self) -> bool:
        """Whether a worker should be attached, or attaching."""
        return self in _WITH_WORKER

    @property
    def is_ending(self) -> bool:
        """Whether its worker was told to end, because somebody asked for it."""
        return self in (JobState.PAUSING, JobState.CANCELLING)

    def may_become(self, other: "JobState") -> bool:
        """Whether the step from this state to `other` is legal."""
        return other in _NEXT[self]


_WITH_WORKER = frozenset(
    {JobState.PREPARING, JobState.RUNNING, JobState.FINALIZING, JobState.PAUSING, JobState.CANCELLING}
)
_BEFORE_THE_END = frozenset({JobState.RECOVERING, JobState.PAUSING, JobState.CANCELLING, JobState.FAILED})
_NEXT: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.PREPARING, JobState.PAUSED, JobState.CANCELLED, JobState.FAILED}),
    JobState.PREPARING: _BEFORE_THE_END | {JobState.RUNNING},
    JobState.RUNNING: _BEFORE_THE_END | {JobState.FINALIZING},
    JobState.FINALIZING: frozenset({JobState.SUCCEEDED, JobState.RECOVERING, JobState.CANCELLING, JobState.FAILED}),
    JobState.RECOVERING: (_BEFORE_THE_END - {JobState.RECOVERING})
    | {JobState.PREPARING, JobState.QUEUED, JobState.PAUSED, JobState.CANCELLED},
    JobState.PAUSING: frozenset(
        {JobState.PAUSED, JobState.QUEUED, JobState.FINALIZING, JobState.CANCELLING, JobState.FAILED}
    ),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED, JobState.FAILED}),
    JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.FAILED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}
