"""What a sink is: a place outside the house where the figures of trainings are kept too, such as MLflow or TensorBoard.

A sink reads what is durable here already.  It is called in a thread of its own, with a deadline, and told the same
entries again until a call returns: what it does must be repeatable.  Nothing it does, or fails to do, reaches a job.
Packages add kinds through the entry point group `headrace.sinks`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """What an operator may set of one kind of sink; kinds add their own fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Run:
    """One job, as sinks know it: what never changes about it."""

    id: str
    """Unique on its server; see `key`."""
    created_at: datetime
    model: str
    """`models/{model}`."""
    dataset: str
    """`datasets/{dataset}/versions/{version}`."""
    trainer: str
    parameters: Mapping[str, str]
    """The whole specification, flat: "recipe.optimizer.learning_rate" = "0.001"."""
    labels: Mapping[str, str]

    @property
    def key(self) -> str:
        """What tells it from every other, also from an earlier job with the same id that was deleted."""
        return f"{self.id}:{self.created_at.isoformat()}"


@dataclass(frozen=True, slots=True)
class Figures:
    """Numbers that were measured after a step."""

    sequence: int
    """Its place in the job's history."""
    time: datetime
    step: int
    values: Mapping[str, float]
    """By name: "train/loss", "evaluation/accuracy", "time/forward_seconds".  May be NaN or infinite."""


@dataclass(frozen=True, slots=True)
class StateNote:
    """The job moved to another state."""

    sequence: int
    time: datetime
    state: str
    """As in the contract: "RUNNING"."""
    reason: str
    message: str
    is_terminal: bool


@dataclass(frozen=True, slots=True)
class Note:
    """Something else that people may want to know of."""

    sequence: int
    time: datetime
    kind: str
    """"checkpoint", "best_checkpoint", "model_version", "phase", "profile" or "warning"."""
    text: str


Entry: TypeAlias = Figures | StateNote | Note


@dataclass(frozen=True, slots=True)
class Batch:
    """The next entries of one job's history, in order."""

    run: Run
    entries: Sequence[Entry]
    """At least one."""


class SinkUnavailable(Exception):
    """The sink is away for a while: it is asked again, with the same entries, until it is back."""


class SinkRefused(Exception):
    """The sink will never take these entries; they are left out, and counted."""


class Sink(Protocol):
    """Somewhere to keep figures.  Both methods may block, and are called from one thread, never at the same time."""

    def write(self, batch: Batch) -> None:
        """Keep the entries: when this returns they will not be told again.

        May be told entries that it has kept already, when it or the server ended before that was noted.
        Raises SinkUnavailable, SinkRefused.  Anything else counts as SinkUnavailable a few times, then as SinkRefused.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections.  Nothing is written afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class SinkKind:
    """One kind of sink; an entry point of `headrace.sinks` leads to one."""

    name: str
    """What settings call it."""
    options: type[Options]
    open: Callable[[Options], Sink]
    """Makes a sink of checked options.  Called in its thread before the first batch; may raise as `write` does."""
