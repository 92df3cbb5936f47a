"""The evaluations of one training: what they found, which was the best, and what the network was then."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace_server.trainers.examination import examine
from headrace_server.trainers.feed import Feed
from headrace_server.trainers.learner import Learner
from headrace_server.trainers.ranks import World
from headrace_server.trainers.recipe import Recipe
from headrace_server.trainers.reports import EvaluationCompleted
from headrace_server.trainers.task import Task
from headrace_server.trainers.yardstick import Standing, make_yardstick


@dataclass(frozen=True, slots=True)
class Best:
    """The network at its best evaluation."""

    step: int
    metrics: Mapping[str, float]
    weights: Mapping[str, Tensor]
    """By name, on the CPU."""


class NotFinite(Exception):
    """A measure that no training could go on with; internal, whoever trains tells it as Diverged."""

    def __init__(self, name: str, value: float) -> None:
        super().__init__(f"the held-out {name} is {value}")


class Evaluations:
    """Of a network in training, on held-out rows.  Raises InvalidSpec where the task lacks the measure that decides."""

    def __init__(
        self,
        task: Task,
        learner: Learner,
        recipe: Recipe,
        device: torch.device,
        world: World,
        report: Callable[[EvaluationCompleted], None],
    ) -> None:
        self._task, self._learner, self._recipe, self._world, self._report = task, learner, recipe, world, report
        self._held_out = Feed(task.held_out, recipe.batch_size, device, fetches_ahead=False)
        self._yardstick = make_yardstick(recipe, task.measures, Standing())
        self.best_weights: Mapping[str, Tensor] | None = None
        """Of the network at its best evaluation; None before the first."""

    @property
    def standing(self) -> Standing:
        """What was found so far, for checkpoints."""
        return self._yardstick.standing

    @property
    def is_exhausted(self) -> bool:
        """Whether early stopping was asked for and its patience has run out."""
        return self._yardstick.is_exhausted

    @property
    def best(self) -> Best:
        """The network at its best evaluation; there must have been one."""
        standing = self.standing
        assert self.best_weights is not None
        assert standing.best_step is not None
        return Best(standing.best_step, standing.best_metrics, self.best_weights)

    def evaluate(self, step: int, epoch: int) -> bool:
        """Examine the network after `step` and report it; returns whether it was never better.  Raises NotFinite."""
        with self._learner.examined() as network:
            metrics = examine(network, self._task, self._held_out, self._world)
            for name, value in metrics.items():
                if not math.isfinite(value):
                    raise NotFinite(name, value)
            is_best = self._yardstick.judge(step, metrics)
            if is_best:
                self.best_weights = self._learner.weights()
        num_rows = self._held_out.num_rows
        self._report(EvaluationCompleted(step=step, epoch=epoch, metrics=metrics, is_best=is_best, num_rows=num_rows))
        return is_best

    def restore(self, standing: Standing, best_weights: Mapping[str, Tensor] | None) -> None:
        """Go on from a checkpoint."""
        self._yardstick = make_yardstick(self._recipe, self._task.measures, standing)
        self.best_weights = best_weights
