"""What can go wrong, as types.  Knows no transport: `rpc/status.py` holds the one table from here to gRPC.

    HeadraceError
    ├─ Invalid        the request can never succeed      InvalidSpec, InvalidTensor, InvalidName, InvalidDataset,
    │                                                    InvalidModel, InvalidPageToken, TooLarge
    ├─ NotFound                                          JobNotFound, DatasetNotFound, ModelNotFound,
    │                                                    CheckpointNotFound
    ├─ Conflict       it clashes with what exists        RequestIdReused, NameTaken
    ├─ WrongState     not now, given the state           IllegalTransition, ModelNotLoaded, InUse, Unsupported
    ├─ OutOfRange     the cursor points outside history  CursorExpired, CursorAhead
    ├─ Overloaded     try again later                    QueueFull, NoPermit, DeviceOutOfMemory, StorageFull
    ├─ Unavailable    try again elsewhere or soon        ModelLoading, NoCheckpointYet, Draining
    ├─ Expired        the time for it is over            ExpiredInQueue, TimedOut
    ├─ Fenced         a newer worker has the job         WorkerFenced
    ├─ Broken         the model failed on good input     ModelFailed
    └─ CannotStart    never reaches a caller             bad settings, a port in use, a database from a newer release

Anything else that is raised is our own fault and reaches callers as INTERNAL with an id.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with one field of a request."""

    field: str
    """The path of the field, as in the contract: `spec.tabular.target`."""
    description: str
    """What is wrong and what would be right."""


class HeadraceError(Exception):
    """A fault of the world: bad input, a missing thing, a limit.  `reason` and `metadata` are for programs."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.metadata: Mapping[str, str] = {key: str(value) for key, value in metadata.items()}


def of_member(error: HeadraceError, member: str) -> HeadraceError:
    """The same error, told as that of one member of an ensemble: nothing of it is lost."""
    path = "/".join(name for name in (member, error.metadata.get("member")) if name)
    told = type(error).__new__(type(error), f"member {member!r}: {error}")
    told.__dict__.update(error.__dict__)
    told.metadata = {**error.metadata, "member": path}
    return told


# The request can never succeed.


class Invalid(HeadraceError):
    """The request can never succeed as it is; `violations` lists every field that must change."""

    reason = "INVALID_SPEC"

    def __init__(self, message: str, violations: Sequence[Violation] = (), **metadata: object) -> None:
        super().__init__(message, **metadata)
        self.violations = tuple(violations)


class InvalidSpec(Invalid):
    """Fields of a request are missing, unknown or out of range."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        assert violations
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        super().__init__(f"{first.field}: {first.description}{more}", violations)
        self.metadata = {**self.metadata, "violations": str(len(violations))}


class InvalidTensor(Invalid):
    """Tensors do not fit the signature of the model."""

    reason = "INVALID_TENSOR"

    def __init__(self, violations: Sequence[Violation], model: str = "") -> None:
        assert violations
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        super().__init__(f"{first.field}: {first.description}{more}", violations, model=model)
        self.metadata = {**self.metadata, "violations": str(len(violations))}


class InvalidName(Invalid):
    """A resource name has the wrong form."""

    reason = "INVALID_NAME"

    def __init__(self, name: str, expected: str, field: str = "name") -> None:
        description = f"{name!r} is not of the form {expected}"
        super().__init__(description, [Violation(field, description)], name=name, expected=expected)


class InvalidDataset(Invalid):
    """A content cannot be read as what it claims to be."""

    reason = "INVALID_DATASET"

    def __init__(self, problem: str, format: str = "", **metadata: object) -> None:  # noqa: A002 - the contract's word
        super().__init__(problem, [Violation("dataset", problem)], format=format, problem=problem, **metadata)


class InvalidModel(Invalid):
    """A model file cannot be read, or asks for what this server cannot run."""

    reason = "INVALID_MODEL"

    def __init__(self, problem: str, **metadata: object) -> None:
        super().__init__(problem, [Violation("model", problem)], problem=problem, **metadata)


class InvalidPageToken(Invalid):
    """A page token was made by another method, or for another question."""

    reason = "INVALID_PAGE_TOKEN"

    def __init__(self) -> None:
        description = "not a token that this method made for this question; start again without one"
        super().__init__(f"page_token: {description}", [Violation("page_token", description)])


class TooLarge(Invalid):
    """A message, an upload or what it unpacks to is larger than the server takes."""

    reason = "TOO_LARGE"

    def __init__(self, what: str, limit_bytes: int, setting: str) -> None:
        description = f"the {what} is larger than {limit_bytes:,} bytes, the limit of the setting {setting}"
        super().__init__(description, [Violation(what, description)], what=what, limit_bytes=limit_bytes)


# Something is not there.


class NotFound(HeadraceError):
    """No resource has this name."""

    kind: ClassVar[str]

    def __init__(self, name: str, hint: str = "") -> None:
        super().__init__(f"{name!r} does not exist{f'; {hint}' if hint else ''}", name=name)
        self.name = name


class JobNotFound(NotFound):
    """No training job has this name."""

    reason = "TRAINING_JOB_NOT_FOUND"
    kind = "trainingJob"


class DatasetNotFound(NotFound):
    """No data set, or no such version of it, has this name."""

    reason = "DATASET_NOT_FOUND"
    kind = "dataset"


class ModelNotFound(NotFound):
    """No model, version, alias or artifact has this name."""

    reason = "MODEL_NOT_FOUND"
    kind = "model"


class CheckpointNotFound(NotFound):
    """A job keeps no such checkpoint; `kept_steps` are those that it keeps, the newest first."""

    reason = "CHECKPOINT_NOT_FOUND"
    kind = "checkpoint"

    def __init__(self, name: str, kept_steps: Sequence[int]) -> None:
        kept = ", ".join(map(str, kept_steps[:20]))
        super().__init__(name, f"the steps that are kept are {kept}" if kept else "the job keeps no checkpoint")
        self.metadata = {**self.metadata, "kept_steps": kept}


# It clashes with what exists.


class Conflict(HeadraceError):
    """The request clashes with something that exists."""


class RequestIdReused(Conflict):
    """The request id belongs to an earlier request with another body."""

    reason = "REQUEST_ID_REUSED"

    def __init__(self, request_id: str, existing: str) -> None:
        super().__init__(
            f"request_id {request_id!r} was used for {existing} with a different body",
            request_id=request_id,
            existing=existing,
        )
        self.existing = existing


class NameTaken(Conflict):
    """The id that the caller chose belongs to something else."""

    reason = "NAME_TAKEN"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} exists already; choose another id, or send none", name=name)
        self.existing = name


# Not now, given the state.


class WrongState(HeadraceError):
    """The request is well formed, but not legal in the present state of what it names."""


class IllegalTransition(WrongState):
    """The verb is not legal in the state that the job is in."""

    reason = "ILLEGAL_TRANSITION"

    def __init__(self, name: str, state: str, verb: str) -> None:
        super().__init__(f"cannot {verb} {name}: it is {state}", name=name, state=state, verb=verb)


class ModelNotLoaded(WrongState):
    """The model version is registered but not loaded."""

    reason = "MODEL_NOT_LOADED"

    def __init__(self, model: str, why: str = "") -> None:
        super().__init__(f"{model} is not loaded{f': {why}' if why else ''}", model=model)


class InUse(WrongState):
    """Something still depends on what was to be deleted."""

    reason = "IN_USE"

    def __init__(self, name: str, used_by: str) -> None:
        super().__init__(f"{name} is in use by {used_by}", name=name, used_by=used_by)


class Unsupported(WrongState):
    """The verb needs an object of another kind or in another form."""

    reason = "UNSUPPORTED"

    def __init__(self, what: str, instead: str = "") -> None:
        super().__init__(f"{what} is not supported{f'; {instead}' if instead else ''}", what=what)


# The cursor points outside history.


class OutOfRange(HeadraceError):
    """The cursor points outside the history that is kept."""


class CursorExpired(OutOfRange):
    """The entries right after the cursor are no longer kept."""

    reason = "CURSOR_EXPIRED"

    def __init__(self, after_sequence: int, oldest_sequence: int) -> None:
        super().__init__(
            f"entries after {after_sequence} are no longer kept; the oldest is {oldest_sequence}: start from 0",
            after_sequence=after_sequence,
            oldest_sequence=oldest_sequence,
        )


class CursorAhead(OutOfRange):
    """The cursor points after the newest entry."""

    reason = "CURSOR_AHEAD"

    def __init__(self, after_sequence: int, latest_sequence: int) -> None:
        super().__init__(
            f"after_sequence {after_sequence} is past the newest entry, {latest_sequence}: "
            "the cursor belongs to another job or another server",
            after_sequence=after_sequence,
            latest_sequence=latest_sequence,
        )


# Try again later.


class Overloaded(HeadraceError):
    """A limit is reached; the same request may succeed after `retry_after`."""

    def __init__(self, message: str, retry_after: timedelta, **metadata: object) -> None:
        super().__init__(message, **metadata)
        self.retry_after = retry_after


class QueueFull(Overloaded):
    """The training queue is at its limit; the same request may succeed later."""

    reason = "QUEUE_FULL"

    def __init__(self, waiting: int, limit: int, retry_after: timedelta = timedelta(seconds=30)) -> None:
        super().__init__(
            f"{waiting} jobs are already waiting (limit {limit})", retry_after, waiting=waiting, limit=limit
        )


class NoPermit(Overloaded):
    """Too many rows wait for this model."""

    reason = "NO_PERMIT"

    def __init__(self, model: str, waiting_rows: int, limit: int, retry_after: timedelta, why: str = "") -> None:
        super().__init__(
            f"{waiting_rows} rows already wait for {model} (limit {limit}){f': {why}' if why else ''}",
            retry_after,
            model=model,
            waiting_rows=waiting_rows,
            limit=limit,
        )


class DeviceOutOfMemory(Overloaded):
    """A device has no memory left for the work."""

    reason = "DEVICE_OUT_OF_MEMORY"

    def __init__(
        self, device: str, retry_after: timedelta = timedelta(seconds=5), missing_bytes: int | None = None
    ) -> None:
        """`missing_bytes`: how much more would be needed, where that is known."""
        if missing_bytes is None:
            super().__init__(f"{device} is out of memory", retry_after, device=device)
        else:
            super().__init__(
                f"{device} is out of memory: {missing_bytes:,} bytes are missing, and nothing more may leave",
                retry_after,
                device=device,
                missing_bytes=missing_bytes,
            )
        self.device, self.missing_bytes = device, missing_bytes


class StorageFull(Overloaded):
    """The disk is full; nothing of what was being written is kept."""

    reason = "STORAGE_FULL"

    def __init__(self, needed_bytes: int, retry_after: timedelta = timedelta(minutes=1)) -> None:
        super().__init__(
            "the server's disk is full; nothing of the request was kept", retry_after, needed_bytes=needed_bytes
        )


# Try again elsewhere or soon.


class Unavailable(HeadraceError):
    """Not ready, or no longer; the same request may succeed after `retry_after`, here or at another replica."""

    def __init__(self, message: str, retry_after: timedelta, **metadata: object) -> None:
        super().__init__(message, **metadata)
        self.retry_after = retry_after


class ModelLoading(Unavailable):
    """The model is being loaded."""

    reason = "MODEL_LOADING"

    def __init__(self, model: str, retry_after: timedelta = timedelta(seconds=1)) -> None:
        super().__init__(f"{model} is being loaded", retry_after, model=model)


class NoCheckpointYet(Unavailable):
    """A job that goes on has written no such checkpoint yet."""

    reason = "NO_CHECKPOINT_YET"

    def __init__(self, name: str, state: str, retry_after: timedelta = timedelta(seconds=2)) -> None:
        super().__init__(f"there is no {name} yet; the job is {state}", retry_after, name=name, state=state)


class Draining(Unavailable):
    """The server is shutting down.  `resume_after` is the last sequence that a stream has sent."""

    reason = "SERVER_DRAINING"

    def __init__(self, resume_after: int | None = None, retry_after: timedelta = timedelta(seconds=2)) -> None:
        if resume_after is None:
            super().__init__("the server is shutting down", retry_after)
        else:
            super().__init__(
                f"the server is shutting down; resume after {resume_after}", retry_after, resume_after=resume_after
            )


# The rest.


class Expired(HeadraceError):
    """The time that was given for the work is over."""


class ExpiredInQueue(Expired):
    """The deadline of the call passed while it waited for its turn; the model was not run."""

    reason = "EXPIRED_IN_QUEUE"

    def __init__(self, queue_ms: float) -> None:
        super().__init__(f"the deadline passed after {queue_ms:.0f} ms in the queue", queue_ms=f"{queue_ms:.0f}")


class TimedOut(Expired):
    """A request of a stream took longer than its own timeout, or the stream's deadline, allows."""

    reason = "TIMED_OUT"

    def __init__(self, timeout_seconds: float) -> None:
        super().__init__("the request took longer than it may", timeout_seconds=f"{timeout_seconds:g}")


class Fenced(HeadraceError):
    """Somebody newer has taken over."""


class WorkerFenced(Fenced):
    """A newer worker has the job; this one must stop."""

    reason = "WORKER_FENCED"

    def __init__(self, attempt: int, current: int) -> None:
        super().__init__(f"attempt {attempt} was replaced by attempt {current}", attempt=attempt, current=current)


class Broken(HeadraceError):
    """A model failed although the request fits its signature."""


class ModelFailed(Broken):
    """The model failed on this request although the request fits its signature."""

    reason = "MODEL_FAILED"

    def __init__(self, model: str, problem: str) -> None:
        super().__init__(f"{model} failed: {problem}", model=model)


class CannotStart(HeadraceError):
    """The server cannot start as it is configured; the message says what to change."""
