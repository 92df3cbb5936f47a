"""What compiling cost and gained on a node, and what it is predicted to by that.  Knows no torch.

A network that was compiled here before is predicted to do as it did: its code lies in the cache.  Another one is
predicted by the others of the same hardware and release of torch: their median cost for each layer, and their median
gain.  Only where nothing was ever compiled is anything assumed; the first training that is long enough for the attempt
to cost little of it is the probe from which the others know.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from headrace_server.trainers.compile_cache import write_whole

ASSUMED_GAIN = 1.15
ASSUMED_SECONDS, ASSUMED_SECONDS_A_LAYER = 30.0, 1.0
_KEPT = 64
"""Networks that are remembered; the oldest go first."""


class Attempt(BaseModel):
    """One network that was compiled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hardware: str
    network: str
    """What tells it from others: a digest of its structure and of the shape of its batches."""
    num_layers: int
    first_seconds: float
    """What compiling took when its code was not there yet."""
    seconds: float
    """What it took the last time."""
    gain: float
    """How many times as fast its steps were; below 1 when they were slower."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What compiling is expected to take and to give."""

    seconds: float
    gain: float
    basis: str
    """"network", "hardware" or "assumption"."""

    def is_worth_it(self, step_seconds: float, num_left: int) -> bool:
        """Whether it saves more time than it takes, of so many steps that are left."""
        return step_seconds * num_left * (1 - 1 / self.gain) > self.seconds


class CompileRecord:
    """The record of a node; in memory alone without a path."""

    def __init__(self, path: Path | None, hardware: str) -> None:
        self._path, self._hardware = path, hardware
        self._attempts = [] if path is None else _read(path)

    def predict(self, network: str, num_layers: int) -> Prediction:
        """What compiling a network is expected to take and to give."""
        here = [attempt for attempt in self._attempts if attempt.hardware == self._hardware]
        own = [attempt for attempt in here if attempt.network == network]
        if own:
            return Prediction(own[-1].seconds, own[-1].gain, "network")
        if here:
            seconds_a_layer = statistics.median(attempt.first_seconds / attempt.num_layers for attempt in here)
            gain = statistics.median(attempt.gain for attempt in here)
            return Prediction(seconds_a_layer * num_layers, gain, "hardware")
        return Prediction(ASSUMED_SECONDS + ASSUMED_SECONDS_A_LAYER * num_layers, ASSUMED_GAIN, "assumption")

    def note(self, network: str, num_layers: int, seconds: float, gain: float) -> None:
        """Write down what compiling took and gave.  Raises OSError."""
        attempts = self._attempts if self._path is None else _read(self._path)  # others write, too
        earlier = [one for one in attempts if (one.hardware, one.network) == (self._hardware, network)]
        attempts = [one for one in attempts if one not in earlier]
        attempt = Attempt(
            hardware=self._hardware,
            network=network,
            num_layers=max(1, num_layers),
            first_seconds=max([seconds, *(one.first_seconds for one in earlier)]),
            seconds=seconds,
            gain=gain,
        )
        self._attempts = [*attempts, attempt][-_KEPT:]
        if self._path is not None:
            write_whole(self._path, _Attempts(attempts=self._attempts).model_dump_json(indent=1))


class _Attempts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    attempts: list[Attempt]


def _read(path: Path) -> list[Attempt]:
    try:
        return _Attempts.model_validate_json(path.read_bytes()).attempts
    except (OSError, ValidationError):
        return []  # nothing was learned here yet
