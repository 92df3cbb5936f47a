"""A loop over the tiny task, with all that it said and left."""

import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from headrace_server.trainers.checkpoint import read_checkpoint
from headrace_server.trainers.checkpoint_writer import CheckpointWriter
from headrace_server.trainers.compile_cache import CompileCache
from headrace_server.trainers.loop import Loop, Outcome
from headrace_server.trainers.profiling import Profiling
from headrace_server.trainers.recipe import AdamW, ConstantSchedule, Epochs, Recipe
from headrace_server.trainers.reports import CheckpointWritten, EvaluationCompleted, StepCompleted, TrainerReport
from headrace_server.trainers.task import Task
from headrace_server.trainers.yielding import Yielding
from tests.doubles.tiny_task import TinyTask

CPU = torch.device("cpu")
RECIPE = Recipe(length=Epochs(count=4), batch_size=8, optimizer=AdamW(learning_rate=0.01), seed=5)
PLAIN = RECIPE.model_copy(update={"schedule": ConstantSchedule()})


class StopAt(threading.Event):
    """An event that is set when it has been looked at `num_looks` times; the loop looks once before each step."""

    def __init__(self, num_looks: int | None) -> None:
        super().__init__()
        self._num_looks = num_looks

    def is_set(self) -> bool:
        if self._num_looks is None:
            return False
        self._num_looks -= 1
        return self._num_looks < 0


class Run:
    """One loop with all that it said and left."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe = RECIPE,
        task: Task | None = None,
        stop_after: int | None = None,
        resume_from: Path | None = None,
        versions: dict[str, str] | None = None,
        yielding: Yielding | None = None,
        profiling: Callable[[Callable[[TrainerReport], None]], Profiling] | None = None,
        device: torch.device = CPU,
        compile_cache: CompileCache | None = None,
    ) -> None:
        self.reports: list[TrainerReport] = []
        torch.manual_seed(recipe.seed)
        task = task or TinyTask()
        self.network = task.make_network()
        self.writer = CheckpointWriter(folder, self.reports.append)
        self.loop = Loop(
            task,
            self.network,
            recipe,
            device=device,
            report=self.reports.append,
            checkpoints=self.writer,
            stop=StopAt(stop_after),
            versions=versions,
            yielding=yielding,
            profiling=profiling and profiling(self.reports.append),
            compile_cache=compile_cache,
        )
        if resume_from is not None:
            self.loop.restore(read_checkpoint(resume_from))

    def go(self) -> Outcome:
        try:
            return self.loop.run()
        finally:
            self.writer.close()

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.network.state_dict().items()}

    @property
    def checkpoints(self) -> list[CheckpointWritten]:
        return [report for report in self.reports if isinstance(report, CheckpointWritten)]

    @property
    def steps(self) -> list[StepCompleted]:
        return [report for report in self.reports if isinstance(report, StepCompleted)]

    @property
    def evaluations(self) -> list[EvaluationCompleted]:
        return [report for report in self.reports if isinstance(report, EvaluationCompleted)]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def sometimes_infinite(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that some batches of the tiny task, and always the same ones, make infinite."""
    loss = torch.nn.functional.cross_entropy(outputs, targets)
    return loss / (targets.sum() != 5)
