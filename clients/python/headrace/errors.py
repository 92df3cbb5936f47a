"""What can go wrong, as types.  `status.py` makes them of what the server sends.

    HeadraceError
    ├─ Invalid            the request can never succeed     INVALID_ARGUMENT
    │    InvalidSpec, InvalidTensor, InvalidName, InvalidDataset, InvalidModel, InvalidPageToken, TooLarge
    ├─ NotFound                                             NOT_FOUND
    │    JobNotFound, DatasetNotFound, ModelNotFound
    ├─ Conflict           it clashes with what exists       ALREADY_EXISTS
    │    RequestIdReused, NameTaken
    ├─ WrongState         not now, given the state          FAILED_PRECONDITION
    │    IllegalTransition, ModelNotLoaded, InUse, Unsupported
    ├─ OutOfRange         the cursor is outside history     OUT_OF_RANGE
    │    CursorExpired, CursorAhead
    ├─ Overloaded         try again later                   RESOURCE_EXHAUSTED
    │    QueueFull, NoPermit, TooManyCalls, BuffersFull, DeviceOutOfMemory, StorageFull
    ├─ Unavailable        try again soon                    UNAVAILABLE
    │    ModelLoading, NoCheckpointYet, ServerDraining, StoreAway
    ├─ DeadlineExceeded   also a TimeoutError               DEADLINE_EXCEEDED
    │    ExpiredInQueue, TimedOut
    ├─ Denied                                               UNAUTHENTICATED, PERMISSION_DENIED
    ├─ ServerFault        the server, or between, is broken INTERNAL, UNKNOWN and all other codes
    │    ModelFailed
    ├─ DigestMismatch     what arrived is not what was sent (found by the client)
    └─ TrainingEnded      how a job ended, never a call; `.job` holds it all
         TrainingFailed, TrainingCancelled

A reason that this release does not know becomes the type of its code, so that newer servers do not break older clients.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import ClassVar

import grpc

from headrace.evidence import Evidence, Violation
from headrace.training.v1.training_job_pb2 import TrainingJob


class HeadraceError(Exception):
    """A call, or a training, did not succeed.  `str()` is one sentence for people; branch on the type or `reason`."""

    reason: str = ""
    """A name of the contract's ErrorReason without its prefix; empty when none came, as from a proxy."""
    default_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str | None = None,
        evidence: Evidence | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = self.default_code if code is None else code
        if reason is not None:
            self.reason = reason
        evidence = evidence or Evidence()
        self.metadata: Mapping[str, str] = evidence.metadata
        """Every changing word of the message, by name."""
        self.violations: tuple[Violation, ...] = evidence.violations
        """Every field that must change, at once."""
        self.retry_after: timedelta | None = evidence.retry_after
        """When the server suggests to try again; None when it did not say."""
        self.request_id: str = evidence.request_id
        """Finds the call in the server's log; empty when the error arose on this side."""


# The request can never succeed.


class Invalid(HeadraceError):
    """The request can never succeed as it is; `violations` lists every field that must change."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class InvalidSpec(Invalid):
    """Fields of a request are missing, unknown or out of range."""

    reason = "INVALID_SPEC"


class InvalidTensor(Invalid):
    """Tensors do not fit the signature of the model.  Most are found before anything is sent."""

    reason = "INVALID_TENSOR"


class InvalidName(Invalid):
    """A resource name has the wrong form."""

    reason = "INVALID_NAME"


class InvalidDataset(Invalid):
    """A content cannot be read as what it claims to be."""

    reason = "INVALID_DATASET"


class InvalidModel(Invalid):
    """A model file cannot be read, or asks for what the server cannot run."""

    reason = "INVALID_MODEL"


class InvalidPageToken(Invalid):
    """A page token was not made for this question."""

    reason = "INVALID_PAGE_TOKEN"


class TooLarge(Invalid):
    """A message or an upload is larger than the server takes."""

    reason = "TOO_LARGE"


# Something is not there.


class NotFound(HeadraceError):
    """Nothing has this name."""

    default_code = grpc.StatusCode.NOT_FOUND


class JobNotFound(NotFound):
    """No training job has this name."""

    reason = "TRAINING_JOB_NOT_FOUND"


class DatasetNotFound(NotFound):
    """No data set, or no such version of it, has this name."""

    reason = "DATASET_NOT_FOUND"


class CheckpointNotFound(NotFound):
    """A job keeps no such checkpoint; `metadata["kept_steps"]` lists the newest of those that it keeps."""

    reason = "CHECKPOINT_NOT_FOUND"


class ModelNotFound(NotFound):
    """No model, version, alias or artifact has this name."""

    reason = "MODEL_NOT_FOUND"


# It clashes with what exists.


class Conflict(HeadraceError):
    """The request clashes with something that exists."""

    default_code = grpc.StatusCode.ALREADY_EXISTS


class RequestIdReused(Conflict):
    """The request id belongs to an earlier request with another body."""

    reason = "REQUEST_ID_REUSED"


class NameTaken(Conflict):
    """The id that the caller chose is taken."""

    reason = "NAME_TAKEN"


# Not now, given the state.


class WrongState(HeadraceError):
    """The request is well formed, but not legal in the present state of what it names."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class IllegalTransition(WrongState):
    """The verb is not legal in the state that the job is in."""

    reason = "ILLEGAL_TRANSITION"


class ModelNotLoaded(WrongState):
    """The model version is registered but not loaded."""

    reason = "MODEL_NOT_LOADED"


class InUse(WrongState):
    """Something still depends on what was to be deleted."""

    reason = "IN_USE"


class Unsupported(WrongState):
    """The verb needs an object of another kind, or one in another form."""

    reason = "UNSUPPORTED"


# The cursor is outside history.


class OutOfRange(HeadraceError):
    """The cursor points outside the history that is kept."""

    default_code = grpc.StatusCode.OUT_OF_RANGE


class CursorExpired(OutOfRange):
    """The entries right after the cursor are no longer kept: start again from 0."""

    reason = "CURSOR_EXPIRED"


class CursorAhead(OutOfRange):
    """The cursor points after the newest entry: it belongs to another job or another server."""

    reason = "CURSOR_AHEAD"


# Try again.


class Overloaded(HeadraceError):
    """A limit is reached; the same request may succeed after `retry_after`."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class QueueFull(Overloaded):
    """As many training jobs wait as may."""

    reason = "QUEUE_FULL"


class NoPermit(Overloaded):
    """Too many predictions wait for this model."""

    reason = "NO_PERMIT"


class TooManyCalls(Overloaded):
    """The server has as many calls under way as it takes."""

    reason = "TOO_MANY_CALLS"


class BuffersFull(Overloaded):
    """The server holds as many bytes as it may of messages that came compressed."""

    reason = "BUFFERS_FULL"


class DeviceOutOfMemory(Overloaded):
    """A device has no memory left for the work."""

    reason = "DEVICE_OUT_OF_MEMORY"


class StorageFull(Overloaded):
    """The disk of the server is full; nothing of the request was kept."""

    reason = "STORAGE_FULL"


class Unavailable(HeadraceError):
    """Nobody answers, or not yet, or no longer; the same request may succeed soon."""

    default_code = grpc.StatusCode.UNAVAILABLE


class ModelLoading(Unavailable):
    """The model is being loaded."""

    reason = "MODEL_LOADING"


class NoCheckpointYet(Unavailable):
    """A job that goes on has written no such checkpoint yet."""

    reason = "NO_CHECKPOINT_YET"


class ServerDraining(Unavailable):
    """The server is shutting down."""

    reason = "SERVER_DRAINING"


class StoreAway(Unavailable):
    """The server's store of data sets, checkpoints and programs is not where it was."""

    reason = "STORE_AWAY"


class DeadlineExceeded(HeadraceError, TimeoutError):
    """The time that the call was given has passed."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class ExpiredInQueue(DeadlineExceeded):
    """The time passed while the call waited for its turn; the model was not run."""

    reason = "EXPIRED_IN_QUEUE"


class TimedOut(DeadlineExceeded):
    """A request of a stream took longer than its own timeout; the model may have been run."""

    reason = "TIMED_OUT"


# The rest.


class Denied(HeadraceError):
    """The server does not know the caller, or does not let him."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class ServerFault(HeadraceError):
    """A fault of the server or of something between; `request_id` finds it in the server's log."""

    default_code = grpc.StatusCode.INTERNAL


class ModelFailed(ServerFault):
    """The model failed on this request although the request fits its signature."""

    reason = "MODEL_FAILED"


class DigestMismatch(HeadraceError):
    """What arrived is not what the server says it sent; nothing of it was kept."""

    default_code = grpc.StatusCode.DATA_LOSS


class TrainingEnded(HeadraceError):
    """A job ended without a model."""

    def __init__(self, message: str, job: TrainingJob, cause: HeadraceError | None = None) -> None:
        evidence = None if cause is None else Evidence(cause.metadata, cause.violations, cause.retry_after)
        super().__init__(
            message,
            code=None if cause is None else cause.code,
            reason=None if cause is None else cause.reason,
            evidence=evidence,
        )
        self.job = job


class TrainingFailed(TrainingEnded):
    """The job failed; `reason` and `metadata` hold the evidence: exit code, signal, last lines of its log."""

    default_code = grpc.StatusCode.UNKNOWN

    def __init__(self, job: TrainingJob, cause: HeadraceError) -> None:
        super().__init__(
            f"{job.name} failed: {cause.message or job.state_message or 'no reason was given'}", job, cause
        )


class TrainingCancelled(TrainingEnded):
    """Somebody asked the job to stop."""

    default_code = grpc.StatusCode.CANCELLED

    def __init__(self, job: TrainingJob) -> None:
        super().__init__(f"{job.name} was cancelled{f': {job.state_message}' if job.state_message else ''}", job)


CATEGORIES: tuple[type[HeadraceError], ...] = (
    Invalid, NotFound, Conflict, WrongState, OutOfRange, Overloaded, Unavailable, DeadlineExceeded, Denied, ServerFault,
)  # fmt: skip
"""The types that stand for whole codes."""
