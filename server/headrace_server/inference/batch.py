"""What callers of a batcher give and get: limits, and answers."""

from dataclasses import dataclass
from enum import StrEnum

from headrace_server.tensors import Array


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


class Reason(StrEnum):
    """Why a batch closed."""

    FULL = "full"
    """The next part would not have fitted, or the part must run alone."""
    IDLE = "idle"
    """A lane was free, and nothing else waited."""
    DELAY = "delay"
    """It had waited for company long enough."""
    DEADLINE = "deadline"
    """More rows, or more waiting, would have cost a call its deadline."""
    DRAIN = "drain"
    """The server is shutting down: nobody waits for company."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a ticket's future resolves to."""

    outputs: dict[str, Array]
    """Views of the batch's outputs, unless the call was computed in slices."""
    queue_seconds: float
    assemble_seconds: float
    compute_seconds: float
    finished_at: float
    """When the (last) run ended, on the batcher's clock."""
    batch_rows: int
    batch_calls: int
    variant: int = 0
    """Which of the model's programs ran."""
