"""Whether interruptions, micro-batches and ranks change what is learnt: bits, and the largest difference of a weight.

    python tests/benchmarks/bench_resume.py [--kills 20] [--seed 1]

1. A trainer process is killed with SIGKILL as soon as it has reported one of `--kills` random steps, and started again
   from its last checkpoint, until it has ended by itself.  Its final weights are compared with those of a process that
   nobody disturbed: bit by bit.
2. The same training in 2, 4 and 8 micro-batches, and on two ranks (replicated, and fully sharded), beside one pass over
   the whole batch on one rank.  No two of them add in the same order, so this is about rounding.

Prints Markdown, and fails if a bit differs in the first, or a weight by more than 1e-4 in the second.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.trainers.job_file import JobFile
from headrace_server.trainers.recipe import AdamW, CheckpointPolicy, Epochs, Evaluation, Recipe, Strategy
from headrace_server.trainers.reports import (
    TRAINER_REPORT,
    CheckpointWritten,
    ExportWritten,
    StepCompleted,
    TrainerReport,
)

ROOT = Path(__file__).parents[2]
NUM_EPOCHS, NUM_ROWS, BATCH_SIZE = 60, 2_000, 16
RECIPE = Recipe(
    length=Epochs(count=NUM_EPOCHS),
    batch_size=BATCH_SIZE,
    optimizer=AdamW(learning_rate=0.003),
    evaluation=Evaluation(every_epochs=5),
    checkpoints=CheckpointPolicy(period_seconds=1),
    micro_batches=2,
    seed=3,
    cpu_threads=1,
)
NUM_STEPS = NUM_EPOCHS * -(-int(NUM_ROWS * 0.8) // BATCH_SIZE)
TOLERANCE = 1e-4


def write_table(path: Path) -> None:
    """Two columns of numbers, one of categories, two classes that noise mixes."""
    chance = random.Random(1)
    rows = []
    for _ in range(NUM_ROWS):
        width, height, colour = chance.gauss(0, 1), chance.gauss(0, 1), chance.choice("abc")
        kind = "yes" if width * height + (colour == "a") + chance.gauss(0, 0.3) > 0.3 else "no"
        rows.append(f"{width:.4f},{height:.4f},{colour},{kind}")
    path.write_text("\n".join(["width,height,colour,kind", *rows]) + "\n", encoding="utf-8")


def attempt(
    folder: Path, table: Path, resume_from: Path | None, kill_at: int | None
) -> tuple[Path | None, Path | None]:
    """One trainer process; it is killed at its first report of step `kill_at` or later.

    Returns its last checkpoint (or the one it began with) and, if it ended by itself, its export.
    """
    folder.mkdir()
    read_end, write_end = os.pipe()
    job = JobFile(
        job="trainingJobs/bench",
        trainer="tabular",
        parameters={"target": "kind", "hidden_widths": [64, 64]},
        recipe=RECIPE,
        dataset_path=table,
        dataset_format=DatasetFormat.CSV,
        workspace=folder,
        resume_from=resume_from,
        report_descriptor=write_end,
    )
    (folder / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "headrace_server.trainers", str(folder / "job.json")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[write_end], start_new_session=True)
    os.close(write_end)
    checkpoint, export = resume_from, None
    with os.fdopen(read_end, "rb") as pipe:
        for line in pipe:
            report: TrainerReport = TRAINER_REPORT.validate_json(line)
            if isinstance(report, CheckpointWritten):
                # The agent would publish and remove it; here a new name is its publication.
                checkpoint = Path(report.folder).rename(folder / f"published-{Path(report.folder).name}")
            elif isinstance(report, ExportWritten):
                export = Path(report.folder)
            elif isinstance(report, StepCompleted) and kill_at is not None and report.step >= kill_at:
                os.killpg(process.pid, signal.SIGKILL)
                break
    process.wait(60)
    if process.stdin is not None:
        process.stdin.close()
    if kill_at is None and process.returncode:
        raise SystemExit(f"the trainer ended with {process.returncode}")
    return checkpoint, export


def weights_of(export: Path | None) -> dict[str, Tensor]:
    """The exported weights."""
    assert export is not None
    return load_file(export / "weights.safetensors")


def kill(folder: Path, num_kills: int, seed: int) -> str:
    """The first part; a line of the table."""
    table = folder / "table.csv"
    write_table(table)
    _, whole = attempt(folder / "whole", table, None, None)
    steps = sorted(random.Random(seed).sample(range(1, NUM_STEPS - 20), num_kills))
    checkpoint: Path | None = None
    begun_at = time.monotonic()
    for number, step in enumerate(steps):
        checkpoint, _ = attempt(folder / f"killed-{number}", table, checkpoint, step)
    _, export = attempt(folder / "last", table, checkpoint, None)
    one, other = weights_of(whole), weights_of(export)
    is_same = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    if not is_same:
        raise SystemExit(f"killed at {steps}: the final weights differ by {difference(one, other):.3g}")
    seconds = time.monotonic() - begun_at
    return f"| SIGKILL at {num_kills} of {NUM_STEPS} steps, {seconds:.0f} s | every bit is the same |"


def ranks(folder: Path, size: int, recipe: Recipe) -> dict[str, Tensor]:
    """The final weights of the tiny task of the tests, trained by so many ranks."""
    folder.mkdir()
    job = {
        "folder": str(folder),
        "recipe": recipe.model_dump(mode="json"),
        "stop_at": 1 << 60,
        "resume_from": "",
        "task": {"is_plain": True, "num_rows": 333},
    }
    (folder / "job.json").write_text(json.dumps(job))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.doubles.rank", str(folder / "job.json")],
            cwd=ROOT,
            env={**os.environ, **({**world, "RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {})},
        )
        for rank in range(size)
    ]
    if any(process.wait(300) for process in processes):
        raise SystemExit("a rank failed")
    return load_file(folder / "weights.safetensors")


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest of any weight."""
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def equivalence(folder: Path) -> list[str]:
    """The second part; lines of the table."""
    recipe = RECIPE.model_copy(update={"length": Epochs(count=10), "batch_size": 24, "micro_batches": 1})
    whole = ranks(folder / "ranks", 1, recipe)
    sides: dict[str, tuple[int, dict[str, object]]] = {
        f"{parts} micro-batches": (1, {"micro_batches": parts}) for parts in (2, 4, 8)
    }
    sides["two ranks, replicated"] = (2, {})
    sides["two ranks, fully sharded, 2 micro-batches"] = (2, {"strategy": Strategy.FULLY_SHARDED, "micro_batches": 2})
    lines = []
    for number, (name, (size, changes)) in enumerate(sides.items()):
        found = difference(whole, ranks(folder / f"ranks-{number}", size, recipe.model_copy(update=changes)))
        if found > TOLERANCE:
            raise SystemExit(f"{name}: a weight differs by {found:.3g}")
        lines.append(f"| {name} | {found:.2g} |")
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1, help="of the steps at which it is killed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = [kill(Path(folder), arguments.kills, arguments.seed), *equivalence(Path(folder))]
    print(f"torch {torch.__version__}\n\n| beside a training in one go | largest difference of a weight |\n|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
