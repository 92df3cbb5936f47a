"""The states of a job and the only ways between them.

QUEUED → PREPARING → RUNNING → FINALIZING → SUCCEEDED
QUEUED → CANCELLED
any live state → CANCELLING → CANCELLED
any live state → FAILED
PREPARING, RUNNING, FINALIZING → RECOVERING → PREPARING
"""

from enum import StrEnum


class JobState(StrEnum):
    """Where a job is in its life; names as in the contract."""

    QUEUED = "QUEUED"
    PREPARING = "PREPARING"
    RUNNING = "RUNNING"
    FINALIZING = "FINALIZING"
    RECOVERING = "RECOVERING"
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
        return self in (JobState.PREPARING, JobState.RUNNING, JobState.FINALIZING, JobState.CANCELLING)

    def may_become(self, other: "JobState") -> bool:
        """Whether the step from this state to `other` is legal."""
        return other in _NEXT[self]


_NEXT: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.PREPARING, JobState.CANCELLED, JobState.FAILED}),
    JobState.PREPARING: frozenset({JobState.RUNNING, JobState.RECOVERING, JobState.CANCELLING, JobState.FAILED}),
    JobState.RUNNING: frozenset({JobState.FINALIZING, JobState.RECOVERING, JobState.CANCELLING, JobState.FAILED}),
    JobState.FINALIZING: frozenset({JobState.SUCCEEDED, JobState.RECOVERING, JobState.CANCELLING, JobState.FAILED}),
    JobState.RECOVERING: frozenset({JobState.PREPARING, JobState.CANCELLING, JobState.CANCELLED, JobState.FAILED}),
    JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.FAILED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}
