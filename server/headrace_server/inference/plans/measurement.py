"""What was measured of the plans of one version on one machine: facts, which no policy changes.

They cross from the measuring process to the server and into the database as JSON.
"""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from headrace_server.inference.plans.difference import Difference
from headrace_server.inference.plans.plan import Plan


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Source(StrEnum):
    """Where the rows come from that plans are judged with."""

    TRAINING = "training"
    """Held-out rows that training stored with the version."""
    CALLER = "caller"
    """Rows that somebody supplied."""
    DRAWN = "drawn"
    """Random numbers that fit the signature: they say little about accuracy."""


class Speed(_Fact):
    """How long one run takes."""

    rows: int
    threads: int
    seconds: float
    """The median of some runs."""


class Arrangement(_Fact):
    """So many sessions at the same time, each with so many threads."""

    sessions: int
    threads: int
    rows: int
    """Of each batch."""
    rows_per_second: float
    """All sessions together."""


class PreparedFile(_Fact):
    """A file that was made for a plan."""

    name: str
    digest: str
    size_bytes: int


class Trial(_Fact):
    """One plan, tried."""

    plan: Plan
    problem: str = ""
    """Why it could not be made or run; then there are no figures."""
    differences: tuple[Difference, ...] = ()
    """From the reference, at several sizes of batch."""
    speeds: tuple[Speed, ...] = ()
    arrangements: tuple[Arrangement, ...] = ()
    metric: float | None = None
    """The measure that training recorded, on the rows that it stored answers for; None where there are none."""
    mask_input: str = ""
    """The input whose zeros at the end of sequences need not be computed; said by the first trial."""
    prepared: PreparedFile | None = None
    prepare_seconds: float = 0.0
    resident_bytes: int = 0
    """How much more memory of its device was taken when it was open and had run; 0 where that cannot be told."""

    def worst_difference(self) -> Difference:
        """The figures that decide: the worst of all sizes of batch."""
        assert self.differences
        shares = [one.agreement for one in self.differences if one.agreement is not None]
        return Difference(
            rows=max(one.rows for one in self.differences),
            max_absolute=max(one.max_absolute for one in self.differences),
            mean_absolute=max(one.mean_absolute for one in self.differences),
            max_relative=max(one.max_relative for one in self.differences),
            min_cosine=min(one.min_cosine for one in self.differences),
            agreement=min(shares, default=None),
            num_nonfinite=sum(one.num_nonfinite for one in self.differences),
        )

    def seconds(self, rows: int, threads: int) -> float | None:
        """How long a batch of so many rows takes; None where that was not measured."""
        found = (one.seconds for one in self.speeds if one.rows == rows and one.threads == threads)
        return next(found, None)

    def busy_seconds(self, rows: int) -> float | None:
        """What a batch of so many rows costs the machine when it runs as many at once as is best; None as above."""
        rates = [one.rows_per_second for one in self.arrangements if one.rows == rows]
        return rows / max(rates) if rates else None


class Measurement(_Fact):
    """All plans of one version, tried on one machine."""

    environment: dict[str, str]
    """Hardware and versions; see `environment.py`."""
    source: Source
    why_drawn: str = ""
    """Why better rows were not used; empty unless they are drawn."""
    num_rows: int
    reference: str
    """What plans were compared with: "trained network", or the name of a plan."""
    is_higher_better: bool = True
    metric_name: str = ""
    trials: tuple[Trial, ...]
    seconds: float
    measured_at: datetime

    def trial(self, name: str) -> Trial | None:
        """The trial of the plan with this name."""
        return next((trial for trial in self.trials if trial.plan.name == name), None)
