"""What the loop makes of a GPU: images a second beside a bare script, and what graphs, compilation and checkpoints do.

    python tests/benchmarks/bench_training_gpu.py [--rounds 5] [--steps 300] [--device cuda|cpu]

A CIFAR-shaped recipe (a ResNet-18, images of 32 pixels, batches of 512, BF16, channels last, AdamW) and a small one (a
64-256-256-10 perceptron, batches of 64), both with their rows in the device's memory.  Sides of each, which take turns:

    bare                    the script that anybody would write, with the fused AdamW
    headrace                the loop with neither of the below: reports to nobody, ten times a second
    headrace, graphs        micro-batches replayed as CUDA graphs
    headrace, compiled      the network compiled by torch
    headrace, checkpoints   a checkpoint a second, written in the background

Warm-up, recording and compiling are left out: each side first trains for a tenth of its steps, and the clock starts at
the report after that.  The device is waited for at both ends.  `--device cpu` is for trying the script.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[2]))

from headrace_server.precision import Precision
from headrace_server.trainers.arithmetic import use_algorithms
from headrace_server.trainers.checkpoint_writer import CheckpointWriter
from headrace_server.trainers.loop import Loop
from headrace_server.trainers.recipe import (
    AdamW,
    CheckpointPolicy,
    Compilation,
    ConstantSchedule,
    Evaluation,
    Graphs,
    Recipe,
    Steps,
)
from headrace_server.trainers.reports import CheckpointWritten, StepCompleted, TrainerReport
from tests.benchmarks.training.recipe import SHAPES, Shape
from tests.benchmarks.training.task import ShapeTask

CASES = {
    "resnet18": (replace(SHAPES["resnet18"], num_rows=16_384, batch_size=512), Precision.BF16),
    "mlp": (SHAPES["mlp"], Precision.FP32),
}
NEVER = CheckpointPolicy(period_seconds=86_400)


def wait_for(device: torch.device) -> None:
    """Until all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bare(shape: Shape, precision: Precision, num_steps: int, device: torch.device) -> float:
    """Seconds a step of a script without anything else."""
    torch.manual_seed(1)
    network = shape.network().to(device)
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stubs lack it
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    inputs, targets = (tensor.to(device) for tensor in shape.rows())
    is_mixed = precision is Precision.BF16
    begun_at, num_warm_up, order = 0.0, num_steps // 10, torch.empty(0)
    steps_per_epoch = shape.num_rows // shape.batch_size
    for step in range(num_warm_up + num_steps):
        if step == num_warm_up:
            wait_for(device)
            begun_at = time.perf_counter()
        if step % steps_per_epoch == 0:
            order = torch.randperm(shape.num_rows, device=device)
        position = step % steps_per_epoch * shape.batch_size
        chosen = order[position : position + shape.batch_size]
        rows = inputs[chosen]
        if rows.dim() == 4 and device.type == "cuda":
            rows = rows.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16) if is_mixed else nullcontext():
            outputs = network(rows)
        loss = functional.cross_entropy(outputs.float(), targets[chosen])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    wait_for(device)
    return (time.perf_counter() - begun_at) / num_steps


def ours(recipe: Recipe, task: ShapeTask, network: nn.Module, device: torch.device, folder: Path | None) -> float:
    """Seconds a step of our loop, from its first report after the warm-up to its last."""
    assert isinstance(recipe.length, Steps)
    num_warm_up = recipe.length.count // 11
    marks: list[tuple[int, float]] = []

    def report(said: TrainerReport) -> None:
        if isinstance(said, StepCompleted) and said.step > num_warm_up:
            marks.append((said.step, time.perf_counter()))  # its loss was read, so the device has done it
        elif isinstance(said, CheckpointWritten):
            shutil.rmtree(said.folder)

    writer = None if folder is None else CheckpointWriter(folder, report)
    loop = Loop(task, network, recipe, device=device, report=report, checkpoints=writer, stop=threading.Event())
    loop.run()
    if writer is not None:
        writer.close()
    (first_step, first), (last_step, last) = marks[0], marks[-1]
    return (last - first) / (last_step - first_step)


def sides_of(name: str, num_steps: int, device: torch.device, folder: Path) -> dict[str, Callable[[], float]]:
    """What is compared, by name."""
    shape, precision = CASES[name]
    task = ShapeTask(shape)
    task.is_static = True
    plain = Recipe(
        length=Steps(count=num_steps + num_steps // 10),
        batch_size=shape.batch_size,
        optimizer=AdamW(),
        schedule=ConstantSchedule(),
        evaluation=Evaluation(every_epochs=1_000_000),
        checkpoints=NEVER,
        precision=precision,
        graphs=Graphs.NEVER,
        compilation=Compilation.NEVER,
        seed=1,
    )

    def side(changes: dict[str, object], into: Path | None = None) -> Callable[[], float]:
        recipe = plain.model_copy(update=changes)

        def run() -> float:
            use_algorithms(deterministic=False, precision=precision, device=device)
            torch.manual_seed(1)
            return ours(recipe, task, task.make_network(), device, into)

        return run

    return {
        "bare": lambda: bare(shape, precision, num_steps, device),
        "headrace": side({}),
        "headrace, graphs": side({"graphs": Graphs.ALWAYS}),
        "headrace, compiled": side({"compilation": Compilation.ALWAYS}),
        "headrace, checkpoints": side({"checkpoints": CheckpointPolicy(period_seconds=1)}, folder),
    }


def main() -> None:
    """Print a table for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    asked = parser.parse_args()
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device: nothing is measured")
        return
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU, which says nothing"
    print(f"torch {torch.__version__}, {where}; {asked.rounds} rounds of {asked.steps} steps")
    for name in asked.cases:
        with tempfile.TemporaryDirectory() as folder:
            sides = sides_of(name, asked.steps, device, Path(folder))
            times: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(asked.rounds):
                for side, run in sides.items():
                    times[side].append(run())
        rows = CASES[name][0].batch_size
        print(f"\n| {name}, batches of {rows} | us a step | rows/s | ratio of times |\n|---|---|---|---|")
        for side, seconds in times.items():
            median = statistics.median(seconds)
            ratios = [mine / its for mine, its in zip(seconds, times["bare"], strict=True)]
            spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
            print(f"| {side} | {median * 1e6:,.0f} | {rows / median:,.0f} | {spread} |")


if __name__ == "__main__":
    main()
