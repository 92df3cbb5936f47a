"""Compiles the network where the time that this saves is predicted to be worth the time that it takes.

    watch some eager steps → predict → compile → watch some compiled steps → keep them, or go back → write it down

The prediction is plain: what is left of the training at the pace of the eager steps, less what it would be at the pace
of compiled ones, against what compiling takes.  Both are what they were on this node before (`compile_record.py`).
Compiled steps that turn out to be no faster are given up again.

A training that decides by the clock may decide otherwise the next time, and compiled arithmetic rounds otherwise: a
deterministic training is compiled always or never.  So is one on a CPU or of several ranks, where nothing is predicted.
"""

import hashlib
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

import structlog
import torch
from torch import nn

from headrace_server.trainers.compile_cache import CompileCache
from headrace_server.trainers.compile_record import CompileRecord
from headrace_server.trainers.pace import Pace
from headrace_server.trainers.recipe import Compilation, Recipe
from headrace_server.trainers.reports import PhaseChanged, TrainerReport, WarningRaised

Rescue = Callable[[Exception], bool]

log = structlog.get_logger()


class Compilable(Protocol):
    """A network in training."""

    network: nn.Module

    def compile(self, rescue: Rescue) -> None:
        """Compute with compiled code from the next pass on, which compiles it.

        Where that fails, `rescue` is asked whether to try again; if not, the pass is computed without.
        """
        ...

    def interpret(self) -> None:
        """Compute without compiled code from the next pass on."""
        ...


class _Stage(Enum):
    EAGER = auto()
    COMPILING = auto()
    COMPILED = auto()
    SETTLED = auto()


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
        cache: CompileCache | None = None,
    ) -> None:
        self._learner, self._device, self._num_steps, self._report = learner, device, num_steps, report
        self._is_wanted = recipe.compilation is Compilation.ALWAYS
        predicts = recipe.compilation is Compilation.AUTO and device.type == "cuda" and num_ranks == 1
        self._stage = _Stage.EAGER if self._is_wanted or (predicts and not recipe.deterministic) else _Stage.SETTLED
        self._recipe, self._cache = recipe, cache
        self._record: CompileRecord | None = None
        self._pace = Pace(device)
        self._num_failures = 0
        self._compiling_at = self._eager_seconds = self._compile_seconds = 0.0

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
                if (seconds := self._pace.before_step()) is not None:
                    self._eager_seconds = seconds
                    if self._is_worth_it(seconds, self._num_steps - step):
                        self._compile()
                    else:
                        self._stage = _Stage.SETTLED
            case _Stage.COMPILING:
                self._is_compiled()
            case _Stage.COMPILED:
                if (seconds := self._pace.before_step()) is not None:
                    self._stage = _Stage.SETTLED
                    self._note(self._eager_seconds / max(seconds, 1e-9))
                    if seconds > self._eager_seconds:
                        self._give_up(seconds)

    def close(self, step: int) -> None:
        """Let go of the cache after the last of so many steps."""
        if self._cache is not None:
            self._cache.close()

    def _is_worth_it(self, step_seconds: float, num_left: int) -> bool:
        path = None if self._cache is None else self._cache.learned_path
        hardware = f"{torch.cuda.get_device_name(self._device)}, torch {torch.__version__}"
        self._record = CompileRecord(path, hardware)
        prediction = self._record.predict(self._fingerprint(), self._num_layers())
        is_worth_it = prediction.is_worth_it(step_seconds, num_left)
        log.info(
            "trainers.compilation_predicted",
            seconds=prediction.seconds, gain=prediction.gain, basis=prediction.basis, compiles=is_worth_it,
        )  # fmt: skip
        return is_worth_it

    def _compile(self) -> None:
        self._report(PhaseChanged(phase="compiling"))
        if self._cache is not None:
            try:
                self._cache.open()
            except OSError as error:  # torch then compiles into a folder of its own
                self._cache = None
                log.warning("trainers.compile_cache_refused", error=str(error))
        self._compiling_at = time.perf_counter()
        self._learner.compile(self._rescue)
        self._stage = _Stage.COMPILING

    def _is_compiled(self) -> None:
        """The first step with compiled code, which it was compiled in, is done."""
        self._compile_seconds = time.perf_counter() - self._compiling_at
        if self._cache is not None:
            self._cache.seal()  # so that a training that is killed finds its code again
        self._report(PhaseChanged(phase="training"))
        is_done = self._is_wanted or self._num_failures > 1
        self._stage, self._pace = _Stage.SETTLED if is_done else _Stage.COMPILED, Pace(self._device)

    def _rescue(self, error: Exception) -> bool:
        """Whether to try again: once, without what lies in the cache, since it may be that."""
        self._num_failures += 1
        if self._num_failures == 1 and self._cache is not None:
            self._cache.clear()
            log.warning("trainers.compile_cache_cleared", error=str(error))
            return True
        self._num_failures = 2
        problem = str(error).partition("\n")[0][:500]
        self._report(WarningRaised(code="COMPILATION_FAILED", message=f"trained without compiled code: {problem}"))
        return False

    def _note(self, gain: float) -> None:
        assert self._record is not None
        try:
            self._record.note(self._fingerprint(), self._num_layers(), self._compile_seconds, gain)
        except OSError as error:
            log.warning("trainers.compile_record_refused", error=str(error))

    def _give_up(self, seconds: float) -> None:
        self._learner.interpret()
        message = f"compiled steps take {seconds * 1e3:.3g} ms, others {self._eager_seconds * 1e3:.3g} ms: given up"
        self._report(WarningRaised(code="COMPILATION_GIVEN_UP", message=message))

    def _fingerprint(self) -> str:
        recipe = self._recipe
        what = f"{self._learner.network!r} {recipe.batch_size}/{recipe.micro_batches} {recipe.precision.value}"
        return hashlib.sha256(what.encode()).hexdigest()

    def _num_layers(self) -> int:
        return sum(1 for module in self._learner.network.modules() if any(module.parameters(False)))
