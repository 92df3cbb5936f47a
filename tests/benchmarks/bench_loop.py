"""What our training loop costs over a bare loop that somebody writes by hand for the same recipe, and what others cost.

    python tests/benchmarks/bench_loop.py [--shape mlp|resnet18] [--rounds N] [--steps N] [--readers N] [--peers]
        [--checkpoint-seconds A,B]

All sides train the same network over the same tensors in memory by AdamW on one thread (tests/benchmarks/training/
recipe.py): a 64-256-256-10 perceptron with batches of 64 rows, or a ResNet-18 for images of 32 pixels with batches of
16.  The bare loop has no reports, no evaluation, no checkpoints and no schedule.  Sides of ours:

    headrace                     the loop alone: reports ten times a second to a pipe that a thread drains, checkpoints
                                 every second (perceptron) or three (ResNet), written in the background
    headrace, no checkpoints     the same without them; what it is faster by is what checkpoints cost a step
    headrace, a job, N readers   a job of a real server beside it, whose progress so many readers follow over gRPC, and
                                 whose checkpoints are published; the trainer's own figures (training/served.py);
                                 once for each of --checkpoint-seconds

Rounds alternate (A B C A B C …).  Besides the time on the clock, each side shows the processor time of its process, all
threads included, which other programs on the machine disturb less.  Ratios are the median of the ratios within a round,
with the least and the largest.

One side is the bare loop with the optimizer that torch gives without being asked for a fused one.  With --peers, the
same recipe in Lightning and in the Trainer of Hugging Face, once with all their reports and checkpoints off and once as
they come; their environments are made below build/ when they are first wanted.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[2]))

from headrace_server.trainers.checkpoint_writer import CheckpointWriter
from headrace_server.trainers.loop import Loop
from headrace_server.trainers.pipe import ReportPipe
from headrace_server.trainers.recipe import AdamW, CheckpointPolicy, ConstantSchedule, Evaluation, Recipe, Steps
from headrace_server.trainers.reports import CheckpointWritten, TrainerReport
from headrace_server.trainers.task import Task
from tests.benchmarks.training.clock import Clock
from tests.benchmarks.training.recipe import SHAPES, Shape
from tests.benchmarks.training.served import Served, served
from tests.benchmarks.training.task import ShapeTask
from tests.doubles.environment import Environment

FOLDER = Path(__file__).parent / "training"
REFERENCE = "bare, torch.optim.AdamW(fused=True)"
DEFAULT_STEPS = {"mlp": 2000, "resnet18": 10}
CHECKPOINT_SECONDS = {"mlp": 1.0, "resnet18": 3.0}
LIGHTNING = Environment("lightning", ("lightning==2.6.6", "torch==2.13.0"))
TRANSFORMERS = Environment("transformers", ("transformers>=5,<6", "accelerate>=1.10,<2", "torch==2.13.0"))


def bare(shape: Shape, num_steps: int, optimizer_of: Callable[[nn.Module], torch.optim.Optimizer]) -> Clock:
    """Seconds a step of the loop that anybody would write."""
    torch.manual_seed(1)
    network = shape.network()
    optimizer = optimizer_of(network)
    inputs, targets = shape.rows()
    steps_per_epoch = shape.num_rows // shape.batch_size
    begin = Clock.now()
    for step in range(num_steps):
        if step % steps_per_epoch == 0:
            order = torch.randperm(shape.num_rows)
        position = step % steps_per_epoch * shape.batch_size
        chosen = order[position : position + shape.batch_size]
        loss = functional.cross_entropy(network(inputs[chosen]), targets[chosen])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return begin.each_of(num_steps)


def ours(task: Task, shape: Shape, num_steps: int, folder: Path | None) -> Clock:
    """Seconds a step of our loop, start to end, with one evaluation, and checkpoints if there is a folder for them."""
    read_end, write_end = os.pipe()
    drain = threading.Thread(target=_drain, args=(read_end,))
    drain.start()
    pipe = ReportPipe(write_end, lambda why: None)
    recipe = Recipe(
        length=Steps(count=num_steps),
        batch_size=shape.batch_size,
        optimizer=AdamW(),
        schedule=ConstantSchedule(),
        evaluation=Evaluation(every_epochs=1_000_000),
        checkpoints=CheckpointPolicy(period_seconds=CHECKPOINT_SECONDS[shape.name]),
        seed=1,
    )

    def report(report: TrainerReport) -> None:
        pipe.write(report)
        if isinstance(report, CheckpointWritten):
            shutil.rmtree(report.folder)

    torch.manual_seed(1)
    writer = None if folder is None else CheckpointWriter(folder, report)
    device = torch.device("cpu")
    loop = Loop(
        task, task.make_network(), recipe, device=device, report=report, checkpoints=writer, stop=threading.Event()
    )
    begin = Clock.now()
    loop.run()
    if writer is not None:
        writer.close()
    each = begin.each_of(num_steps)
    os.close(write_end)
    drain.join()
    os.close(read_end)
    return each


def peer(environment: Environment, program: str, shape: Shape, num_steps: int, logs: str) -> Clock:
    """Seconds a step of somebody else's loop, in a process of its own."""
    command = [str(environment.python()), str(FOLDER / program), shape.name, str(num_steps), logs]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if ended.returncode:
        raise SystemExit(f"{program} failed:\n{ended.stderr}")
    return Clock(**json.loads(ended.stdout.strip().splitlines()[-1]))


def _drain(descriptor: int) -> None:
    while os.read(descriptor, 65_536):
        pass


def sides_of(
    shape: Shape, num_steps: int, folder: Path, server: Served, periods: list[float], with_peers: bool
) -> dict[str, Callable[[], Clock]]:
    """What is compared, by name."""
    task = ShapeTask(shape)
    sides: dict[str, Callable[[], Clock]] = {
        REFERENCE: lambda: bare(shape, num_steps, lambda network: torch.optim.AdamW(network.parameters(), fused=True)),
        "bare, torch.optim.AdamW": lambda: bare(
            shape, num_steps, lambda network: torch.optim.AdamW(network.parameters())
        ),
        "headrace": lambda: ours(task, shape, num_steps, folder),
        "headrace, no checkpoints": lambda: ours(task, shape, num_steps, None),
    }
    for period in periods:
        name = f"headrace, a job, {server.num_readers} readers, checkpoints every {period:g} s"
        sides[name] = lambda period=period: server.train(shape, num_steps, period)  # type: ignore[misc]
    if with_peers:
        for logs in ("bare", "usual"):
            sides[f"Lightning, {logs}"] = lambda logs=logs: peer(  # type: ignore[misc]
                LIGHTNING, "lightning_peer.py", shape, num_steps, logs
            )
            sides[f"Hugging Face Trainer, {logs}"] = lambda logs=logs: peer(  # type: ignore[misc]
                TRANSFORMERS, "transformers_peer.py", shape, num_steps, logs
            )
    return sides


def main() -> None:
    """Print one line a side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="mlp")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, help="of each side in each round")
    parser.add_argument("--readers", type=int, default=10, help="of the job")
    parser.add_argument("--checkpoint-seconds", type=lambda text: [float(part) for part in text.split(",")])
    parser.add_argument("--only-job", action="store_true", help="leave out the loop alone, which has its ends in it")
    parser.add_argument("--peers", action="store_true", help="Lightning and the Trainer of Hugging Face, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shape = SHAPES[arguments.shape]
    num_steps = arguments.steps or DEFAULT_STEPS[shape.name]
    with tempfile.TemporaryDirectory() as folder, served(arguments.readers) as server:
        periods = arguments.checkpoint_seconds or [CHECKPOINT_SECONDS[shape.name]]
        sides = sides_of(shape, num_steps, Path(folder), server, periods, arguments.peers)
        if arguments.only_job:
            sides = {name: side for name, side in sides.items() if name == REFERENCE or "a job" in name}
        times: dict[str, list[Clock]] = {name: [] for name in sides}
        for side in sides.values():
            side()  # warms up
        for _ in range(arguments.rounds):
            for name, side in sides.items():
                times[name].append(side())
    print(f"torch {torch.__version__}, {shape.name}, {arguments.rounds} rounds of {num_steps} steps, one thread")
    print(
        f"all programs together kept {psutil.getloadavg()[0]:.1f} of {psutil.cpu_count()} cores busy, this one included"
    )
    for name, clocks in times.items():
        figures = [f"{which} {_figures(clocks, times[REFERENCE], which)}" for which in ("wall", "processor")]
        print(f"{name:60} {'; '.join(figures)}")


def _figures(clocks: list[Clock], reference: list[Clock], which: str) -> str:
    seconds = [getattr(clock, which) for clock in clocks]
    ratios = [mine / getattr(its, which) for mine, its in zip(seconds, reference, strict=True)]
    median, least = statistics.median(seconds), min(seconds)
    spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
    return f"{median * 1e6:7.0f} us a step (least {least * 1e6:7.0f}), ratio {spread}"


if __name__ == "__main__":
    main()
