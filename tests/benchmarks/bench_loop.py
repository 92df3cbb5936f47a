"""What our training loop costs over a bare loop that somebody writes by hand for the same recipe.

Both sides train a 64-256-256-10 network with batches of 64 rows by AdamW on one thread, over tensors in memory, in the
same order of rows; the bare one has no reports, no evaluation, no checkpoints and no schedule.  Ours reports to a pipe
that another thread drains, ten times a second, and takes an asynchronous checkpoint every second.  Rounds alternate
(A B C A B C ...).  Besides the time on the clock, each side shows the processor time of the whole process, all threads
included, which other programs on the machine disturb less.  Ratios are the median of the ratios within a round.

The last side is the bare loop with `torch.optim.AdamW(fused=True)`: what the same kernels cost behind torch's own door.

    python tests/benchmarks/bench_loop.py [--rounds N] [--steps N]
"""

import argparse
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace_server.tensors import Signature
from headrace_server.trainers.checkpoint_writer import CheckpointWriter
from headrace_server.trainers.loop import Loop
from headrace_server.trainers.measures import CLASSIFICATION, measure_classes
from headrace_server.trainers.pipe import ReportPipe
from headrace_server.trainers.recipe import AdamW, CheckpointPolicy, ConstantSchedule, Evaluation, Recipe, Steps
from headrace_server.trainers.reports import CheckpointWritten, TrainerReport
from headrace_server.trainers.task import Program, Rows, Task

NUM_ROWS, BATCH_SIZE = 64_000, 64


@dataclass(frozen=True)
class Clock:
    """Seconds on the wall, and of processor time of this process."""

    wall: float
    processor: float

    @classmethod
    def now(cls) -> "Clock":
        """As of now."""
        return cls(time.perf_counter(), time.process_time())

    def each_of(self, num_steps: int) -> "Clock":
        """What each of the steps since then took."""
        now = Clock.now()
        return Clock((now.wall - self.wall) / num_steps, (now.processor - self.processor) / num_steps)


class Perceptron(Task):
    """A 64-256-256-10 network over random rows."""

    measures = CLASSIFICATION

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.training = self._rows(NUM_ROWS, generator)
        self.held_out = self._rows(64, generator)

    def make_network(self) -> nn.Module:
        """The network."""
        return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(outputs, targets)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Accuracy and loss."""
        return measure_classes(outputs, targets)

    def program(self, network: nn.Module) -> Program:
        """Nothing is exported here."""
        return Program(network, Signature(inputs=(), outputs=()), self.held_out.inputs)

    @staticmethod
    def _rows(num_rows: int, generator: torch.Generator) -> Rows:
        targets = torch.randint(0, 10, (num_rows,), generator=generator)
        return Rows((torch.randn((num_rows, 64), generator=generator),), targets)


def bare(task: Task, num_steps: int, optimizer_of: Callable[[nn.Module], torch.optim.Optimizer]) -> Clock:
    """Seconds a step of the loop that anybody would write."""
    torch.manual_seed(1)
    network = task.make_network()
    optimizer = optimizer_of(network)
    inputs, targets = task.training.inputs[0], task.training.targets
    steps_per_epoch = NUM_ROWS // BATCH_SIZE
    begin = Clock.now()
    for step in range(num_steps):
        if step % steps_per_epoch == 0:
            order = torch.randperm(NUM_ROWS)
        position = step % steps_per_epoch * BATCH_SIZE
        chosen = order[position : position + BATCH_SIZE]
        loss = functional.cross_entropy(network(inputs[chosen]), targets[chosen])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return begin.each_of(num_steps)


def ours(task: Task, num_steps: int, folder: Path) -> Clock:
    """Seconds a step of our loop, from its start to its end, with one evaluation of 64 rows and the last checkpoint."""
    read_end, write_end = os.pipe()
    drain = threading.Thread(target=_drain, args=(read_end,))
    drain.start()
    pipe = ReportPipe(write_end, lambda why: None)
    recipe = Recipe(
        length=Steps(count=num_steps),
        batch_size=BATCH_SIZE,
        optimizer=AdamW(),
        schedule=ConstantSchedule(),
        evaluation=Evaluation(every_epochs=1_000_000),
        checkpoints=CheckpointPolicy(period_seconds=1),
        seed=1,
    )

    def report(report: TrainerReport) -> None:
        pipe.write(report)
        if isinstance(report, CheckpointWritten):
            shutil.rmtree(report.folder)

    torch.manual_seed(1)
    writer = CheckpointWriter(folder, report)
    device = torch.device("cpu")
    loop = Loop(
        task, task.make_network(), recipe, device=device, report=report, checkpoints=writer, stop=threading.Event()
    )
    begin = Clock.now()
    loop.run()
    writer.close()
    each = begin.each_of(num_steps)
    os.close(write_end)
    drain.join()
    os.close(read_end)
    return each


def _drain(descriptor: int) -> None:
    while os.read(descriptor, 65_536):
        pass


def main() -> None:
    """Print one line a side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = Perceptron()
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, Callable[[], Clock]] = {
            "bare, torch.optim.AdamW": lambda: bare(
                task, arguments.steps, lambda network: torch.optim.AdamW(network.parameters())
            ),
            "bare, torch.optim.AdamW(fused=True)": lambda: bare(
                task, arguments.steps, lambda network: torch.optim.AdamW(network.parameters(), fused=True)
            ),
            "headrace": lambda: ours(task, arguments.steps, Path(folder)),
        }
        times: dict[str, list[Clock]] = {name: [] for name in sides}
        for side in sides.values():
            side()  # warms up
        for _ in range(arguments.rounds):
            for name, side in sides.items():
                times[name].append(side())
    reference = times["bare, torch.optim.AdamW(fused=True)"]
    print(f"torch {torch.__version__}, {arguments.rounds} rounds of {arguments.steps} steps, one thread")
    print(
        f"all programs together kept {psutil.getloadavg()[0]:.1f} of {psutil.cpu_count()} cores busy, this one included"
    )
    for name, clocks in times.items():
        figures = [f"{which} {_figures(clocks, reference, which)}" for which in ("wall", "processor")]
        print(f"{name:36} {'; '.join(figures)}")


def _figures(clocks: list[Clock], reference: list[Clock], which: str) -> str:
    seconds = [getattr(clock, which) for clock in clocks]
    ratios = [mine / getattr(its, which) for mine, its in zip(seconds, reference, strict=True)]
    median, least = statistics.median(seconds), min(seconds)
    return f"{median * 1e6:5.0f} us a step (least {least * 1e6:4.0f}), ratio {statistics.median(ratios):.3f}"


if __name__ == "__main__":
    main()
