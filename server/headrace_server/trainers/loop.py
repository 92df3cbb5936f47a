"""The loop that trains every family.  Read this file first.

    for each step:   batch → augment → forward → loss → backward → optimizer
    at times:        a report, an evaluation, a checkpoint

Three rules shape it:

* The host never waits for the device inside a step.  Losses are summed where they arise and read at reports, at most
  ten times a second (`progress.py`).  A loss that is not finite is therefore found at the next report.
* All that decides the rest of the training is in a checkpoint, and there is little of it: the number of steps done, the
  weights, the optimizer's tensors, the random generators, and the standing of evaluations.  The epoch, the place in it,
  the order of rows and the learning rate are functions of the step.  On a CPU, a training that was stopped anywhere and
  resumed ends with the same bits as one that was not, for the same number of threads.
* What happens after a step (report, evaluation, checkpoint) happens in one place and in that order, `_after_step`, so
  that a checkpoint never lies between a step and the evaluation that belongs to it.

The loop knows no files, no pipes and no families: it is given a Task, and where to report and to keep checkpoints.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from headrace_server.errors import InvalidSpec, Violation
from headrace_server.precision import Precision
from headrace_server.trainers.arithmetic import choose_precision, forward_context
from headrace_server.trainers.checkpoint import Checkpoint, Values, copy_to_host
from headrace_server.trainers.checkpoint_writer import CheckpointWriter, Importance
from headrace_server.trainers.failures import Diverged, TrainingFailure
from headrace_server.trainers.feed import Feed
from headrace_server.trainers.optimizers import LossScale, learning_rate, make_optimizer
from headrace_server.trainers.progress import Progress
from headrace_server.trainers.randomness import Use, derive_seed
from headrace_server.trainers.recipe import Recipe, Steps
from headrace_server.trainers.reports import EvaluationCompleted, TrainerReport
from headrace_server.trainers.stopwatch import PARTS
from headrace_server.trainers.task import Direction, Task
from headrace_server.trainers.yardstick import Standing, Yardstick

DATA, FORWARD, BACKWARD, OPTIMIZER = range(len(PARTS))
_RETRY_SECONDS = 1.0  # after a checkpoint for which there was no room


class Outcome(StrEnum):
    """How a run of the loop ended."""

    COMPLETED = "completed"
    """All steps are done, or early stopping ended them."""
    STOPPED = "stopped"
    """It was told to stop; its last checkpoint continues where it stopped."""


@dataclass(frozen=True, slots=True)
class Best:
    """The network at its best evaluation."""

    step: int
    metrics: Mapping[str, float]
    weights: Mapping[str, Tensor]
    """By name, on the CPU."""


class Loop:
    """One training in one process.

    `network` lies on the CPU with its initial weights; the loop moves it to `device` and trains it in place.
    `versions` goes into checkpoints, for people.
    """

    def __init__(
        self,
        task: Task,
        network: nn.Module,
        recipe: Recipe,
        *,
        device: torch.device,
        report: Callable[[TrainerReport], None],
        checkpoints: CheckpointWriter,
        stop: threading.Event,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        self._task, self._recipe, self._device = task, recipe, device
        self._report, self._checkpoints, self._stop = report, checkpoints, stop
        self._versions = dict(versions or {})
        self._network = network.to(device)
        self._optimizer = make_optimizer(recipe.optimizer, self._network)
        precision = choose_precision(recipe.precision, device)
        self._forward_context = forward_context(precision, device)
        self._loss_scale = LossScale(device) if precision is Precision.FP16 else None
        self._training = Feed(task.training, recipe.batch_size, device)
        self._held_out = Feed(task.held_out, recipe.batch_size, device)
        self._steps_per_epoch = self._training.num_batches
        self.num_steps = self._planned_steps()
        self._step = 0
        self._yardstick = self._make_yardstick(Standing())
        self._is_over = False
        self._best_weights: Mapping[str, Tensor] | None = None
        self._augmentation = torch.Generator(device).manual_seed(derive_seed(recipe.seed, Use.AUGMENTATION))
        self._random_states: Mapping[str, Tensor] | None = None
        self._progress = Progress(report, task.measures, task.measure, device, self.num_steps)
        self._checkpointed_step = 0
        self._checkpoint_due_at = time.monotonic() + recipe.checkpoints.period_seconds

    def run(self) -> Outcome:
        """Train until the planned end, early stopping, or a stop.

        The last checkpoint is complete when this returns; there is none if nothing was done since the one that was
        resumed from.  Raises Diverged, and OSError when the last checkpoint cannot be written.
        """
        self._seed_generators()
        self._network.train()
        while not (self._is_over or self._stop.is_set()):
            self._train_step()
            self._after_step()
        self._checkpoint(Importance.LAST)
        return Outcome.COMPLETED if self._is_over else Outcome.STOPPED

    @property
    def best(self) -> Best:
        """The network at its best evaluation.  Only after COMPLETED: the last step is always evaluated."""
        standing = self._yardstick.standing
        assert self._best_weights is not None
        assert standing.best_step is not None
        return Best(standing.best_step, standing.best_metrics, self._best_weights)

    # One step.

    def _train_step(self) -> None:
        stopwatch, task = self._progress.stopwatch, self._task
        stopwatch.begin()
        epoch, position = divmod(self._step, self._steps_per_epoch)
        inputs, targets = self._training.training_batch(self._recipe.seed, epoch, position)
        inputs = task.augment(inputs, self._augmentation)
        stopwatch.mark(DATA)
        with self._forward_context:
            outputs: Tensor = self._network(*inputs)
        outputs = outputs.float()
        loss = task.loss(outputs, targets)
        stopwatch.mark(FORWARD)
        found_inf = None
        if self._loss_scale is None:
            torch.autograd.backward(loss)
        else:
            torch.autograd.backward(self._loss_scale.scale(loss))
            found_inf = self._loss_scale.unscale(self._network)
        stopwatch.mark(BACKWARD)
        self._optimizer.step(self._learning_rate(self._step), found_inf)
        stopwatch.mark(OPTIMIZER)
        self._step += 1
        self._progress.add(targets.shape[0], loss.detach(), outputs, targets)

    def _learning_rate(self, step: int) -> float:
        return learning_rate(self._recipe.schedule, self._recipe.optimizer.learning_rate, step, self.num_steps)

    # What happens after a step, in this order.

    def _after_step(self) -> None:
        is_last = self._step == self.num_steps
        if self._progress.is_due() or is_last:
            self._flush()
        importance = None
        if is_last or self._is_evaluation_due():
            importance = Importance.BEST if self._evaluate() else Importance.ORDINARY
            self._is_over = is_last or self._yardstick.is_exhausted
        elif time.monotonic() >= self._checkpoint_due_at:
            importance = Importance.ORDINARY
        if importance is not None and not self._is_over and not self._stop.is_set():
            self._checkpoint(importance)

    def _flush(self) -> None:
        """Report the steps so far, if any.  Raises Diverged."""
        self._progress.flush(self._step, self._last_epoch, self._learning_rate(max(0, self._step - 1)))

    @property
    def _last_epoch(self) -> int:
        """The epoch of the last step that was done, counted from 1."""
        return (self._step - 1) // self._steps_per_epoch + 1

    def _diverged(self, what: str) -> Diverged:
        return Diverged(what, self._step, self._progress.last_finite_loss, self._learning_rate(self._step - 1))

    def _is_evaluation_due(self) -> bool:
        epoch, position = divmod(self._step, self._steps_per_epoch)
        return position == 0 and epoch % self._recipe.evaluation.every_epochs == 0

    def _evaluate(self) -> bool:
        """Evaluate in float32, as the exported program will compute; returns whether it was never better."""
        began_at = time.perf_counter()
        self._network.eval()
        with torch.no_grad():
            answers = [(self._network(*inputs).float(), targets) for inputs, targets in self._held_out.in_order()]
            measured = self._task.measure(torch.cat([a for a, _ in answers]), torch.cat([t for _, t in answers]))
        self._network.train()
        metrics = {name: float(value) for name, value in measured.items()}
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise self._diverged(f"the held-out {name} is {value}")
        is_best = self._yardstick.judge(self._step, metrics)
        if is_best:
            self._best_weights = copy_to_host(self._network.state_dict())
        num_rows = self._held_out.num_rows
        self._report(
            EvaluationCompleted(
                step=self._step, epoch=self._last_epoch, metrics=metrics, is_best=is_best, num_rows=num_rows
            )
        )
        self._progress.paused_since(began_at)
        return is_best

    # Checkpoints.

    def _checkpoint(self, importance: Importance) -> None:
        if self._step == self._checkpointed_step:
            return
        if not self._checkpoints.has_room(importance):
            self._checkpoint_due_at = time.monotonic() + _RETRY_SECONDS
            return
        began_at = time.perf_counter()
        self._flush()  # so that a checkpoint is never taken of a training that has diverged
        self._checkpoints.write(self._snapshot(), importance)
        self._checkpointed_step = self._step
        self._checkpoint_due_at = time.monotonic() + self._recipe.checkpoints.period_seconds
        self._progress.paused_since(began_at)

    def _snapshot(self) -> Checkpoint:
        is_best = self._yardstick.standing.best_step == self._step
        weights = self._best_weights if is_best else copy_to_host(self._network.state_dict())
        assert weights is not None  # the best ones are kept by the evaluation that finds them
        if not all(bool(tensor.isfinite().all()) for tensor in weights.values() if tensor.is_floating_point()):
            raise self._diverged("a weight is not finite")
        values = Values(
            step=self._step,
            num_rows=self._training.num_rows,
            is_over=self._is_over,
            standing=self._yardstick.standing,
            versions=self._versions,
        )
        return Checkpoint(weights, self._best_weights, copy_to_host(self._state()), values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint; before `run`.  Raises TrainingFailure if it belongs to another training."""
        values = checkpoint.values
        if values.num_rows != self._training.num_rows or values.step > self.num_steps:
            raise TrainingFailure(
                f"the checkpoint of step {values.step} belongs to another training: it had {values.num_rows} rows, "
                f"this one has {self._training.num_rows} rows and {self.num_steps} steps"
            )
        try:
            self._network.load_state_dict(dict(checkpoint.weights))
            with torch.no_grad():
                for name, tensor in self._state().items():
                    tensor.copy_(checkpoint.tensors[name])
        except (KeyError, RuntimeError) as error:
            raise TrainingFailure(f"the checkpoint does not fit the network: {error}") from error
        self._random_states = checkpoint.tensors
        self._step = self._checkpointed_step = values.step
        self._is_over = values.is_over
        self._yardstick = self._make_yardstick(values.standing)
        self._best_weights = checkpoint.best_weights

    def _state(self) -> dict[str, Tensor]:
        """All tensors beside the weights that decide the rest of the training."""
        generators = {"random.augmentation": self._augmentation.get_state(), "random.cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            generators["random.cuda"] = torch.cuda.get_rng_state(self._device)
        scale = self._loss_scale.state if self._loss_scale else {}
        return {**self._optimizer.state, **scale, **generators}

    def _seed_generators(self) -> None:
        """Set the generators that training draws from; torch's own, which dropout uses, belong to the whole process."""
        if self._random_states is None:
            torch.manual_seed(derive_seed(self._recipe.seed, Use.TRAINING))
            return
        self._augmentation.set_state(self._random_states["random.augmentation"])
        torch.set_rng_state(self._random_states["random.cpu"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(self._random_states["random.cuda"], self._device)

    # The plan.

    def _planned_steps(self) -> int:
        length = self._recipe.length
        return length.count if isinstance(length, Steps) else length.count * self._steps_per_epoch

    def _make_yardstick(self, standing: Standing) -> Yardstick:
        metric = self._recipe.evaluation.metric or next(iter(self._task.measures))
        if metric not in self._task.measures:
            known = ", ".join(self._task.measures)
            raise InvalidSpec([Violation("evaluation.metric", f"{metric!r} is not one of {known} of this training")])
        is_higher_better = self._task.measures[metric] is Direction.UP
        return Yardstick(metric, is_higher_better, self._recipe.early_stopping, standing)
