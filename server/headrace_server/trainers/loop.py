"""The loop that trains every family.  Read this file first.

    for each step:   batch → augment → (forward → loss → backward) for each micro-batch → optimizer
    at times:        a report, an evaluation, a checkpoint

Three rules shape it:

* The host never waits for the device inside a step.  Losses are summed where they arise and read at reports, at most
  ten times a second (`progress.py`).  A loss that is not finite is therefore found at the next report, unless the
  recipe asks for such steps to be left out, which the device decides by itself (`gradients.py`).
* All that decides the rest of the training is in a checkpoint, and there is little of it: how many steps were done and
  how many rows of the next one, and the tensors of the Learner (`learner.py`).  The epoch, the place in it, the order
  of rows and the learning rate are functions of the step.  On a CPU, and anywhere in deterministic mode, a training
  that was stopped anywhere and resumed ends with the same bits as one that was not, for the same number of threads.
* What happens after a step (report, evaluation, checkpoint) happens in one place and in that order, `_after_step`, so
  that a checkpoint never lies between a step and the evaluation that belongs to it.

The loop knows no files, no pipes and no families: it is given a Task, and where to report and to keep checkpoints.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import partial

import torch
from torch import Tensor, nn

from headrace_server.trainers.agreement import Agreement
from headrace_server.trainers.arithmetic import are_finite
from headrace_server.trainers.checkpoint import Checkpoint, Values
from headrace_server.trainers.checkpoint_writer import CheckpointWriter, Importance
from headrace_server.trainers.compile_cache import CompileCache
from headrace_server.trainers.compiling import Compiling
from headrace_server.trainers.environment import differences
from headrace_server.trainers.evaluations import Best, Evaluations, NotFinite
from headrace_server.trainers.failures import Diverged, TrainingFailure
from headrace_server.trainers.feed import Feed
from headrace_server.trainers.gradients import Guard
from headrace_server.trainers.learner import Learner
from headrace_server.trainers.micro_batches import Part, parts_of_step
from headrace_server.trainers.micro_steps import MicroSteps
from headrace_server.trainers.profiling import Profiling
from headrace_server.trainers.progress import Progress
from headrace_server.trainers.ranks import ALONE, CHECKPOINT, REPORT, World
from headrace_server.trainers.recipe import Recipe, Steps
from headrace_server.trainers.rehearsal import rehearse
from headrace_server.trainers.reports import TrainerReport, WarningRaised
from headrace_server.trainers.schedules import learning_rate
from headrace_server.trainers.stopwatch import PARTS
from headrace_server.trainers.task import Task
from headrace_server.trainers.yielding import Yielding

DATA, TRANSFER, FORWARD, BACKWARD, OPTIMIZER = range(len(PARTS))


class Outcome(StrEnum):
    """How a run of the loop ended."""

    COMPLETED = "completed"
    """All steps are done, or early stopping ended them."""
    STOPPED = "stopped"
    """It was told to stop; its last checkpoint continues where it stopped."""


class Loop:
    """One training in one process.

    `network` lies on the CPU with its initial weights; the loop moves it to `device` and trains it in place.
    `versions` goes into checkpoints, and a checkpoint of other versions is resumed with a warning.
    Where there are several ranks, each runs a loop over the same task and recipe, in step; only rank 0 has
    `checkpoints` and hears `stop`.
    """

    def __init__(
        self,
        task: Task,
        network: nn.Module,
        recipe: Recipe,
        *,
        device: torch.device,
        report: Callable[[TrainerReport], None],
        checkpoints: CheckpointWriter | None,
        stop: threading.Event,
        versions: Mapping[str, str] | None = None,
        world: World | None = None,
        yielding: Yielding | None = None,
        profiling: Profiling | None = None,
        compile_cache: CompileCache | None = None,
    ) -> None:
        self._task, self._recipe, self._device = task, recipe, device
        self._world = world or ALONE
        self._place = self._world.place
        self._report, self._checkpoints = report, checkpoints
        self._versions = dict(versions or {})
        self._yielding = yielding
        self._learner = Learner(network, recipe, device, self._world)
        self._training = Feed(task.training, recipe.batch_size, device, self._place)
        self._evaluations = Evaluations(task, self._learner, recipe, device, self._world, report)
        self._most_rows = -(-recipe.batch_size // self._place.size)  # of any rank: they meet in each micro-batch
        self._micro_rows = -(-self._most_rows // recipe.micro_batches)
        self._steps_per_epoch = self._training.num_batches
        self.num_steps = self._planned_steps()
        self._step = self._rows_done = 0
        self._step_loss: Tensor | None = None  # of the rows that are done
        self._is_over = False
        self._skipped_steps = 0
        guard = self._learner.gradients.guard
        self._progress = Progress(
            report,
            task.measures,
            task.measure,
            device,
            self.num_steps,
            lambda step: self._learning_rate(step - 1),
            leaves_out_non_finite=guard is not None,
        )
        self._mark_gathered = partial(self._progress.stopwatch.mark, DATA)
        self._mark_forward = partial(self._progress.stopwatch.mark, FORWARD)
        compiling = Compiling(
            self._learner, recipe, device, self.num_steps, report, num_ranks=self._place.size, cache=compile_cache
        )
        self._micro_steps = MicroSteps(
            self._learner,
            task,
            recipe,
            device,
            self.num_steps,
            report,
            obstacle=self._obstacle_to_graphs(),
            may_watch=lambda: compiling.is_settled,
        )
        self._attendants: list[Compiling | MicroSteps | Profiling] = [
            compiling,
            self._micro_steps,
            *([profiling] if profiling else []),
        ]
        self._checkpointed_at = (0, 0)
        self._agreement = Agreement(
            self._world, stop, checkpoints, self._progress.is_due, recipe.checkpoints.period_seconds
        )

    def run(self) -> Outcome:
        """Train until the planned end, early stopping, or a stop, which is obeyed between two micro-batches.

        The last checkpoint is complete when this returns; there is none if nothing was done since the one that was
        resumed from.  Raises Diverged, and OSError when the last checkpoint cannot be written.
        """
        if not self._is_over:
            self._rehearse()
        self._learner.begin()
        while not (self._is_over or self._agreement.is_told_to_stop()):
            for attendant in self._attendants:
                attendant.before_step(self._step)
            if self._train_step():
                self._after_step()
        self._checkpoint(Importance.LAST)
        for attendant in self._attendants:
            attendant.close(self._step)
        self._training.close()
        return Outcome.COMPLETED if self._is_over else Outcome.STOPPED

    @property
    def best(self) -> Best:
        """The network at its best evaluation.  Only after COMPLETED: the last step is always evaluated."""
        return self._evaluations.best

    # One step.

    def _train_step(self) -> bool:
        """Do one step, or what is left of it; returns whether it is done, or a stop came between its micro-batches."""
        stopwatch, task, learner = self._progress.stopwatch, self._task, self._learner
        stopwatch.begin()
        epoch, position = divmod(self._step, self._steps_per_epoch)
        num_rows = self._training.num_rows_of(position)
        inputs, targets = self._training.training_batch(self._recipe.seed, epoch, position, self._mark_gathered)
        if self._training.fetches_ahead:
            stopwatch.mark(TRANSFER)
        micro_rows = self._micro_rows if self._yielding is None else self._yielding.rows(self._micro_rows)
        parts = parts_of_step(num_rows, micro_rows, self._place, self._rows_done)
        if self._rows_done == 0:
            learner.begin_step(is_divided=len(parts) > 1)
        inputs = task.augment(inputs, learner.augmentation)
        stopwatch.mark(DATA)
        for part in parts:
            if (part.begin > 0 or part is not parts[0]) and self._is_told_to_stop_inside():
                return False
            if self._yielding is not None:
                self._progress.note("yield", self._yielding.give_way())
                stopwatch.skip()
            with learner.part_of_step(is_last=part is parts[-1], counts=part.share > 0):
                answered = targets[part.begin : part.end]
                rows = tuple(tensor[part.begin : part.end] for tensor in inputs)
                outputs, loss = self._micro_steps.run(rows, answered, part.share, self._mark_forward)
            stopwatch.mark(BACKWARD)
            self._collect(part, loss, outputs, answered)
            if self._yielding is not None:
                self._yielding.done(part.end - part.begin)
        assert self._step_loss is not None
        loss = self._world.sum(self._step_loss)
        learner.finish_step(self._learning_rate(self._step), loss, self._step)
        stopwatch.mark(OPTIMIZER)
        self._progress.add(num_rows, loss)
        self._step, self._rows_done, self._step_loss = self._step + 1, 0, None
        return True

    def _is_told_to_stop_inside(self) -> bool:
        """Whether to stop between two micro-batches; what many ranks have done of the step is undone then."""
        is_told = self._agreement.is_told_to_stop_inside()
        if is_told and self._place.size > 1:
            self._learner.rewind_step()
            self._rows_done, self._step_loss = 0, None
        return is_told

    def _rehearse(self) -> None:
        """Before the first step: see that a micro-batch fits into the memory."""
        wanted, splits = self._micro_rows, self._recipe.split_to_fit
        found = rehearse(
            self._task, self._learner, self._training, self._device, self._world, wanted=wanted, splits=splits
        )
        self._micro_rows, self._progress.row_seconds = found.micro_rows, found.row_seconds
        self._micro_steps.rows = found.micro_rows
        if found.micro_rows < wanted:
            message = f"{wanted} rows at once do not fit into the memory of {self._device}: {found.micro_rows} do"
            self._report(WarningRaised(code="BATCH_SPLIT", message=message))

    def _collect(self, part: Part, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        weighted = loss if part.share == 1 else loss * part.share
        self._step_loss = weighted if self._step_loss is None else self._step_loss + weighted
        if part.share > 0:
            self._rows_done = part.end
            self._progress.keep(outputs, targets)

    def _learning_rate(self, step: int) -> float:
        return learning_rate(self._recipe.schedule, self._recipe.optimizer.learning_rate, step, self.num_steps)

    # What happens after a step, in this order.

    def _after_step(self) -> None:
        is_last = self._step == self.num_steps
        wishes, told_to_stop = self._agreement.take(), self._agreement.is_told_to_stop
        if wishes & REPORT or is_last:
            self._flush()
        if is_last or self._is_evaluation_due():
            importance = Importance.BEST if self._evaluate() else Importance.ORDINARY
            self._is_over = is_last or self._evaluations.is_exhausted
            if not (self._is_over or told_to_stop()) and self._agreement.has_room(importance, wishes):
                self._checkpoint(importance)
        elif wishes & CHECKPOINT:
            self._checkpoint(Importance.ORDINARY)
        self._agreement.post()

    def _flush(self) -> None:
        """Report the steps so far, if any.  Raises Diverged."""
        if not self._progress.has_news:
            return
        rate, gradients = self._learning_rate(self._step - 1), self._learner.gradients
        most_in_a_row = 0
        if gradients.guard is not None:
            rate *= float(gradients.guard.rate_share)
            most_in_a_row = self._note_skipped_steps(gradients.guard, rate)
        norm = None if gradients.norm is None else float(gradients.norm)
        self._progress.flush(
            self._step,
            self._last_epoch,
            rate,
            gradient_norm=norm if norm is not None and math.isfinite(norm) else None,
            skipped_steps=self._skipped_steps,
        )
        if most_in_a_row > self._recipe.numerics.max_skipped_in_a_row:
            raise self._diverged(f"{most_in_a_row} steps in a row had no finite loss or gradient, the last of them")

    def _note_skipped_steps(self, guard: Guard, rate: float) -> int:
        """Warn of the steps that were left out since the last report; returns how many were so in a row at most."""
        skipped, most_in_a_row = guard.read()
        if skipped > self._skipped_steps:
            count = skipped - self._skipped_steps
            steps = "one step was" if count == 1 else f"{count} steps were"
            message = f"up to step {self._step}, {steps} left out: the loss or the gradient was not finite"
            message += f"; the learning rate is {rate:.6g} now"
            self._report(WarningRaised(code="STEPS_SKIPPED", message=message))
        self._skipped_steps = skipped
        return most_in_a_row

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
        """Examine the network on the held-out rows; returns whether it was never better."""
        began_at = time.perf_counter()
        try:
            return self._evaluations.evaluate(self._step, self._last_epoch)
        except NotFinite as found:
            raise self._diverged(str(found)) from found
        finally:
            self._progress.paused_since(began_at)

    # Checkpoints.

    def _checkpoint(self, importance: Importance) -> None:
        if (self._step, self._rows_done) == self._checkpointed_at:
            return
        began_at = time.perf_counter()
        self._flush()  # so that a checkpoint is never taken of a training that has diverged
        snapshot = self._snapshot()  # every rank takes part in it
        if self._checkpoints is not None:
            self._checkpoints.write(snapshot, importance)
        self._checkpointed_at = (self._step, self._rows_done)
        self._agreement.note_checkpoint()
        self._progress.paused_since(began_at, "checkpoint")

    def _snapshot(self) -> Checkpoint:
        standing, best_weights = self._evaluations.standing, self._evaluations.best_weights
        is_best = standing.best_step == self._step and not self._rows_done
        # The best ones are kept by the evaluation that finds them.
        weights = best_weights if is_best and not self._learner.averages else self._learner.weights()
        assert weights is not None
        if not are_finite(weights.values()):
            raise self._diverged("a weight is not finite")
        values = Values(
            step=self._step,
            rows_done=self._rows_done,
            num_rows=self._training.num_rows,
            is_over=self._is_over,
            standing=standing,
            versions=self._versions,
        )
        return Checkpoint(weights, best_weights, self._learner.state(self._step_loss), values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint; before `run`.  Raises TrainingFailure if it belongs to another training."""
        values = checkpoint.values
        if values.num_rows != self._training.num_rows or values.step > self.num_steps:
            raise TrainingFailure(
                f"the checkpoint of step {values.step} belongs to another training: it had {values.num_rows} rows, "
                f"this one has {self._training.num_rows} rows and {self.num_steps} steps"
            )
        if changed := differences(values.versions, self._versions):
            message = f"the bits may differ from here: since step {values.step}, {', '.join(changed)}"
            self._report(WarningRaised(code="ENVIRONMENT_CHANGED", message=message))
        self._step_loss = self._learner.restore(checkpoint.weights, checkpoint.tensors)
        rows_done = 0 if self._step_loss is None else values.rows_done
        self._step, self._rows_done = self._checkpointed_at = values.step, rows_done
        self._is_over = values.is_over
        self._evaluations.restore(values.standing, checkpoint.best_weights)
        if (guard := self._learner.gradients.guard) is not None:
            self._skipped_steps, _ = guard.read()

    def begin_with(self, weights: Mapping[str, Tensor]) -> None:
        """Begin with these weights instead of the network's own; before `run`.

        Raises InvalidSpec if they do not fit.
        """
        self._learner.begin_with(weights)

    # The plan.

    def _obstacle_to_graphs(self) -> str:
        """Why micro-batches cannot be recorded, beside what the task and the device say."""
        if self._place.size > 1:
            return "ranks meet in their passes"
        return "micro-batches change their size to give way" if self._yielding and self._yielding.adapts else ""

    def _planned_steps(self) -> int:
        length = self._recipe.length
        return length.count if isinstance(length, Steps) else length.count * self._steps_per_epoch
