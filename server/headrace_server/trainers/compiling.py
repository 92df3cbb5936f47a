"""Compiles the network where the time that this saves is predicted to be worth the time that it takes.

    watch some eager steps → predict → compile → watch some compiled steps → keep them, or go back

The prediction is plain: what is left of the training at the pace of the eager steps, less what it would be if compiled
steps were a seventh faster, against half a minute and a second for each layer.  These are assumptions: compiled steps
that turn out to be no faster are given up again.

A training that decides by the clock may decide otherwise the next time, and compiled arithmetic rounds otherwise: a
deterministic training is compiled always or never.  So is one on a CPU or of several ranks, where nothing is predicted.
"""

import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

import torch
from torch import nn

from headrace_server.trainers.recipe import Compilation, Recipe
from headrace_server.trainers.reports import PhaseChanged, TrainerReport, WarningRaised

GAIN = 1.15
SECONDS, SECONDS_A_LAYER = 30.0, 1.0
"""What compiling is predicted to take."""
_WARM_UP, _WATCHED = 10, 30


class Compilable(Protocol):
    """A network in training."""

    network: nn.Module

    def compile(self) -> None:
        """Compute with compiled code from the next pass on, which compiles it."""
        ...

    def interpret(self) -> None:
        """Compute without compiled code from the next pass on."""
        ...


class _Stage(Enum):
    EAGER = auto()
    COMPILING = auto()
    COMPILED = auto()
    SETTLED = auto()


def is_worth_it(step_seconds: float, num_left: int, num_layers: int) -> bool:
    """Whether compiling is predicted to save more time than it takes, of so many steps that are left."""
    saved = step_seconds * num_left * (1 - 1 / GAIN)
    return saved > SECONDS + SECONDS_A_LAYER * num_layers


class Compiling:
    """The decisions of one training; is told of each step before it begins."""

    def __init__(
        self,
        learner: Compilable,
        recipe: Recipe,
        device: torch.device,
        num_steps: int,
        report: Callable[[TrainerReport], None],
        *,
        num_ranks: int = 1,
    ) -> None:
        self._learner, self._device, self._num_steps, self._report = learner, device, num_steps, report
        self._is_wanted = recipe.compilation is Compilation.ALWAYS
        predicts = recipe.compilation is Compilation.AUTO and device.type == "cuda" and num_ranks == 1
        self._stage = _Stage.EAGER if self._is_wanted or (predicts and not recipe.deterministic) else _Stage.SETTLED
        self._num_seen = 0
        self._begun_at = 0.0
        self._eager_seconds = 0.0

    @property
    def is_settled(self) -> bool:
        """Whether nothing will change about how passes are computed any more."""
        return self._stage is _Stage.SETTLED

    def before_step(self, step: int) -> None:
        """`step` is the number of steps that were done."""
        match self._stage:
            case _Stage.SETTLED:
                pass
            case _Stage.EAGER if self._is_wanted:
                self._compile()
            case _Stage.EAGER:
                if (seconds := self._watched()) is not None:
                    self._eager_seconds = seconds
                    layers = sum(1 for module in self._learner.network.modules() if any(module.parameters(False)))
                    if is_worth_it(seconds, self._num_steps - step, layers):
                        self._compile()
                    else:
                        self._stage = _Stage.SETTLED
            case _Stage.COMPILING:
                self._report(PhaseChanged(phase="training"))
                self._stage, self._num_seen = _Stage.SETTLED if self._is_wanted else _Stage.COMPILED, 0
            case _Stage.COMPILED:
                if (seconds := self._watched()) is not None:
                    self._stage = _Stage.SETTLED
                    if seconds > self._eager_seconds:
                        self._give_up(seconds)

    def close(self, step: int) -> None:
        """Nothing is left to do after the last of so many steps."""

    def _compile(self) -> None:
        self._report(PhaseChanged(phase="compiling"))
        self._learner.compile()
        self._stage = _Stage.COMPILING

    def _give_up(self, seconds: float) -> None:
        self._learner.interpret()
        message = f"compiled steps take {seconds * 1e3:.3g} ms, others {self._eager_seconds * 1e3:.3g} ms: given up"
        self._report(WarningRaised(code="COMPILATION_GIVEN_UP", message=message))

    def _watched(self) -> float | None:
        """The mean seconds of a step, once enough of them were seen; waits for the device at the two ends."""
        self._num_seen += 1
        if self._num_seen not in (_WARM_UP, _WATCHED):
            return None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        if self._num_seen == _WARM_UP:
            self._begun_at = time.perf_counter()
            return None
        return (time.perf_counter() - self._begun_at) / (_WATCHED - _WARM_UP)
