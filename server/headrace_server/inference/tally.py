"""What was counted for one model version since the server has started, for those who ask the server itself.

The same moments feed the metrics; these are the sums that a histogram's buckets lose.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of a model on batches of one size."""

    num_runs: int = 0
    assemble_seconds: float = 0.0
    compute_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Statistics:
    """What was counted for one version."""

    num_answered: int = 0
    answered_seconds: float = 0.0
    """From admission to answer, of all answered calls."""
    answered_rows: int = 0
    num_failed: int = 0
    """Calls that failed, were shed, or whose callers left."""
    failed_seconds: float = 0.0
    queue_seconds: float = 0.0
    """Of answered calls; so are the next three, of which a call counts those of its whole batch."""
    assemble_seconds: float = 0.0
    compute_seconds: float = 0.0
    respond_seconds: float = 0.0
    last_call_at: float | None = None
    """When the last call ended, in seconds since 1970; None when there was none."""
    runs: Mapping[int, Runs] = field(default_factory=dict)
    """By rows."""
