"""The things that a batcher handles: a caller's ticket, the parts that it waits in, and batches of parts.

A call with more rows than a batch may have waits in several parts, each small enough for one batch; its answer is put
together when the last part is done.
"""

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from headrace_server.tensors import Array, Tensors

Group: TypeAlias = Hashable
"""Parts of one group have the same shapes after the first axis, and may be computed together."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much may be computed together, and how much may wait."""

    max_batch_rows: int
    max_batch_bytes: int
    """Input bytes.  A single row that is larger runs alone."""
    max_waiting_rows: int
    max_waiting_bytes: int
    """A call that is larger than what may wait is admitted when nothing else waits."""
    max_delay_seconds: float = 0.0
    """How long a batch that is not full waits for company; 0: never."""
    num_lanes: int = 1


class Reason(Enum):
    """Why a batch closed."""

    FULL = "full"
    """The next part would not have fitted, or the part must run alone."""
    IDLE = "idle"
    """A lane was free, and nothing else waited."""
    DELAY = "delay"
    """It had waited for company long enough."""
    DRAIN = "drain"
    """The server is shutting down: nobody waits for company."""


class Stage(Enum):
    """Where a part is."""

    WAITING = "waiting"
    AGAIN = "again"
    """Its batch failed; it will run alone."""
    RUNNING = "running"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a ticket's future resolves to."""

    outputs: dict[str, Array]
    queue_seconds: float
    assemble_seconds: float
    compute_seconds: float
    finished_at: float
    """When the (last) run ended, on the batcher's clock."""
    batch_rows: int
    batch_calls: int


Outcome: TypeAlias = Answer | BaseException


@dataclass(slots=True, eq=False)
class Ticket:
    """One admitted call.  `future` gets exactly one answer: an Answer or an error."""

    future: asyncio.Future[Answer]
    rows: int
    priority: int
    deadline: float | None
    """On the batcher's clock."""
    admitted_at: float
    parts: list["Part"] = field(default_factory=list)
    parts_left: int = 0
    """Parts without outputs."""
    is_over: bool = False
    """An answer is on its way, or the caller has gone: what remains of it is not computed.  Guarded by the batcher."""
    is_settled: bool = False
    """It has been counted out.  Touched on the loop only."""
    started_at: float | None = None
    assemble_seconds: float = 0.0
    compute_seconds: float = 0.0
    batch_rows: int = 0
    batch_calls: int = 0


@dataclass(slots=True, eq=False)
class Part:
    """Rows of one ticket that are computed at once."""

    ticket: Ticket
    inputs: Tensors
    rows: int
    nbytes: int
    group: Group
    order: tuple[int, int, int]
    """Smaller goes first: priority, then arrival, then the place in its call."""
    stage: Stage = Stage.WAITING
    outputs: dict[str, Array] | None = None

    def __lt__(self, other: "Part") -> bool:
        return self.order < other.order


@dataclass(slots=True, eq=False)
class Batch:
    """What a lane runs at once.  `inputs` stay as they are until the batch is settled or has failed."""

    parts: list[Part]
    rows: int
    reason: Reason
    lane: int
    taken_at: float
    inputs: Tensors = field(default_factory=dict)
    assemble_seconds: float = 0.0

    @property
    def calls(self) -> int:
        """How many callers' rows are in it."""
        return len(self.parts)

    @property
    def queue_seconds(self) -> list[float]:
        """How long each call waited."""
        return [self.taken_at - part.ticket.admitted_at for part in self.parts]
