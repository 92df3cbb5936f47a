"""Decides which evaluation is the best so far, and when waiting for a better one is pointless.  Knows no torch."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from headrace_server.errors import InvalidSpec, Violation
from headrace_server.trainers.recipe import EarlyStopping, Recipe


class Standing(BaseModel):
    """What has been seen so far.  Part of every checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    best_step: int | None = None
    best_metrics: dict[str, float] = {}
    reference: float | None = None
    """The value that an evaluation must improve on, by `min_delta` or more, to count as progress."""
    num_without_progress: int = 0


class Yardstick:
    """One measure, and which way it gets better."""

    def __init__(
        self, metric: str, is_higher_better: bool, early_stopping: EarlyStopping | None, standing: Standing
    ) -> None:
        self.metric = metric
        self.standing = standing
        self._sign = 1.0 if is_higher_better else -1.0
        self._early_stopping = early_stopping

    def judge(self, step: int, metrics: dict[str, float]) -> bool:
        """Take an evaluation into account; returns whether its measure was never better."""
        value, seen = metrics[self.metric], self.standing
        is_best = seen.best_step is None or self._gain(value, seen.best_metrics[self.metric]) > 0
        min_delta = self._early_stopping.min_delta if self._early_stopping else 0.0
        gain = None if seen.reference is None else self._gain(value, seen.reference)
        is_progress = gain is None or (gain > 0 and gain >= min_delta)
        self.standing = Standing(
            best_step=step if is_best else seen.best_step,
            best_metrics=metrics if is_best else seen.best_metrics,
            reference=value if is_progress else seen.reference,
            num_without_progress=0 if is_progress else seen.num_without_progress + 1,
        )
        return is_best

    @property
    def is_exhausted(self) -> bool:
        """Whether early stopping was asked for and its patience has run out."""
        if self._early_stopping is None:
            return False
        return self.standing.num_without_progress >= self._early_stopping.patience

    def _gain(self, value: float, reference: float) -> float:
        return self._sign * (value - reference)


def make_yardstick(recipe: Recipe, measures: Mapping[str, str], standing: Standing) -> Yardstick:
    """The yardstick that a recipe asks for; `measures` says of each of a task's whether "up" or "down" is better.

    Raises InvalidSpec where the task has no such measure.
    """
    metric = recipe.evaluation.metric or next(iter(measures))
    if metric not in measures:
        known = ", ".join(measures)
        raise InvalidSpec([Violation("evaluation.metric", f"{metric!r} is not one of {known} of this training")])
    return Yardstick(metric, measures[metric] == "up", recipe.early_stopping, standing)
