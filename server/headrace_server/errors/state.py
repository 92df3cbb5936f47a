"""What exists is not as the request would have it: missing, taken, in another state, or past."""

from collections.abc import Sequence
from typing import ClassVar

from headrace_server.errors.error import HeadraceError


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


class Fenced(HeadraceError):
    """Somebody newer has taken over."""


class WorkerFenced(Fenced):
    """A newer worker has the job; this one must stop."""

    reason = "WORKER_FENCED"

    def __init__(self, attempt: int, current: int) -> None:
        super().__init__(f"attempt {attempt} was replaced by attempt {current}", attempt=attempt, current=current)
