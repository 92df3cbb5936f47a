"""Does the forward and the backward pass of a micro-batch: as they are, or by replaying a recording of them.

    watch some steps → are they small? → record → watch some replayed steps → keep the recording, or give it up

Recorded are the micro-batches that nearly all steps consist of; others, such as the last of an epoch, are done as they
are.  Replaying repeats the same arithmetic.  Yet the recording may choose other algorithms than the passes it replaces,
and the clock decides: a deterministic training records always or never.
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from headrace_server.trainers.graphs import Recordable, Recording
from headrace_server.trainers.pace import Pace
from headrace_server.trainers.recipe import Graphs, Recipe
from headrace_server.trainers.reports import PhaseChanged, TrainerReport, WarningRaised
from headrace_server.trainers.task import Task

SMALL_SECONDS = 0.02
"""Steps that take longer keep the device busy for so long that launching their kernels hardly matters."""
_WORTH_SECONDS = 20.0  # of training left, before a recording is worth the second that it takes

Passes: TypeAlias = tuple[Tensor, Tensor]
"""What the passes of a micro-batch leave beside gradients: the outputs, and the mean loss."""


class Replayable(Protocol):
    """A recording; see `graphs.py`."""

    def replay(self, inputs: tuple[Tensor, ...], targets: Tensor, forward_done: Callable[[], None]) -> Passes:
        """Do the passes for these rows."""
        ...


Record: TypeAlias = Callable[
    [Recordable, Callable[[Tensor, Tensor], Tensor], tuple[Tensor, ...], Tensor, float], Replayable
]


class _Stage(Enum):
    WAITING = auto()  # for other decisions
    WATCHING = auto()
    WANTED = auto()
    RECORDED = auto()
    SETTLED = auto()


class MicroSteps:
    """The micro-batches of one training; is told of each step before it begins."""

    def __init__(
        self,
        learner: Recordable,
        task: Task,
        recipe: Recipe,
        device: torch.device,
        num_steps: int,
        report: Callable[[TrainerReport], None],
        *,
        obstacle: str = "",
        may_watch: Callable[[], bool] = lambda: True,
        record: Record = Recording,
    ) -> None:
        """`obstacle` is why nothing can be recorded here, if so; `may_watch`, whether the pace of steps is settled."""
        self._learner, self._task, self._device, self._report = learner, task, device, report
        self._num_steps, self._may_watch, self._make_recording = num_steps, may_watch, record
        self._batch_size = recipe.batch_size
        self.rows = recipe.batch_size
        """How many rows nearly all micro-batches have."""
        self._is_wanted = recipe.graphs is Graphs.ALWAYS
        self._stage = _Stage.SETTLED
        obstacle = obstacle or _obstacle(task, device)
        if self._is_wanted and obstacle:
            self._refuse(obstacle)
        elif self._is_wanted:
            self._stage = _Stage.WANTED
        elif recipe.graphs is Graphs.AUTO and not obstacle and not recipe.deterministic:
            self._stage = _Stage.WAITING
        self._recording: Replayable | None = None
        self._pace = Pace(device)
        self._plain_seconds = 0.0

    def before_step(self, step: int) -> None:
        """`step` is the number of steps that were done."""
        match self._stage:
            case _Stage.WAITING if self._may_watch():
                self._stage = _Stage.WATCHING
            case _Stage.WATCHING:
                if (seconds := self._pace.before_step()) is not None:
                    is_small = seconds <= SMALL_SECONDS and seconds * (self._num_steps - step) >= _WORTH_SECONDS
                    self._plain_seconds = seconds
                    self._stage = _Stage.WANTED if is_small else _Stage.SETTLED
            case _Stage.RECORDED if not self._is_wanted:
                if (seconds := self._pace.before_step()) is not None:
                    self._stage = _Stage.SETTLED
                    if seconds > self._plain_seconds:
                        self._give_up(seconds)
            case _:
                pass

    def close(self, step: int) -> None:
        """Nothing is left to do after the last of so many steps."""

    def run(
        self,
        inputs: tuple[Tensor, ...],
        targets: Tensor,
        share: float,
        forward_done: Callable[[], None] = lambda: None,
    ) -> Passes:
        """The outputs and the mean loss of a micro-batch that holds this share of its step's rows.

        Its gradients are added to those that the parameters have.  `forward_done` is called between the two passes.
        """
        is_ordinary = len(targets) == self.rows and share == self.rows / self._batch_size
        if self._stage is _Stage.WANTED and is_ordinary and self._has_no_gradients():
            self._record(inputs, targets, share)
        if self._recording is not None and is_ordinary:
            return self._recording.replay(inputs, targets, forward_done)
        outputs = self._learner.forward(inputs)
        loss = self._task.loss(outputs, targets)
        forward_done()
        self._learner.backward(loss, share)
        return outputs, loss.detach()

    def _record(self, inputs: tuple[Tensor, ...], targets: Tensor, share: float) -> None:
        self._stage, self._pace = _Stage.RECORDED, Pace(self._device)
        self._report(PhaseChanged(phase="capturing"))
        try:
            self._recording = self._make_recording(self._learner, self._task.loss, inputs, targets, share)
        except RuntimeError as error:  # also when the memory does not hold it
            self._refuse(str(error).partition("\n")[0][:500])
            self._stage = _Stage.SETTLED
        self._report(PhaseChanged(phase="training"))

    def _has_no_gradients(self) -> bool:
        return all(parameter.grad is None for parameter in self._learner.network.parameters())

    def _refuse(self, reason: str) -> None:
        message = f"micro-batches are not recorded as CUDA graphs: {reason}"
        self._report(WarningRaised(code="GRAPHS_REFUSED", message=message))

    def _give_up(self, seconds: float) -> None:
        self._recording = None
        message = f"recorded steps take {seconds * 1e3:.3g} ms, others {self._plain_seconds * 1e3:.3g} ms: given up"
        self._report(WarningRaised(code="GRAPHS_GIVEN_UP", message=message))


def _obstacle(task: Task, device: torch.device) -> str:
    """Why nothing can be recorded, if so."""
    if device.type != "cuda":
        return "there is no GPU"
    return "" if task.is_static else "the trainer does not say that it does the same for every batch"
