"""How the learning rate moves over a training: a function of the step alone.  Knows no torch."""

import math
from typing import assert_never

from headrace_server.trainers.recipe import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    Schedule,
    StepDecaySchedule,
)


def learning_rate(schedule: Schedule, peak: float, step: int, num_steps: int) -> float:
    """The rate of step number `step`, counted from 0, of `num_steps`.

    Every schedule rises linearly over its warm-up and reaches the peak at its end.  What falls afterwards would reach
    its final share of the peak one step after the last, so that no step is wasted on it.
    """
    warmup = int(num_steps * schedule.warmup_fraction)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * _share(schedule, (step - warmup) / (num_steps - warmup))


def _share(schedule: Schedule, progress: float) -> float:
    """The share of the peak after this share, 0 to below 1, of the steps that follow the warm-up."""
    match schedule:
        case ConstantSchedule():
            return 1.0
        case CosineSchedule(final_fraction=final):
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
        case LinearSchedule(final_fraction=final):
            return 1 - (1 - final) * progress
        case StepDecaySchedule(factor=factor, num_drops=num_drops):
            return math.pow(factor, int(progress * (num_drops + 1)))
        case _:
            assert_never(schedule)
