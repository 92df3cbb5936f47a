"""One rank of a training of the tiny task, as a process of its own.  A program, not a module.

    RANK=… WORLD_SIZE=… python rank.py JOB.json

The job names a folder, the recipe, what to resume from, and how the task is made; rank 0 leaves its weights as
`weights.safetensors` in the folder, and each rank its reports as `reports-{rank}.json`.
"""

import json
import os
import sys
import threading
from pathlib import Path

import torch
from safetensors.torch import save_file

from headrace_server.trainers.checkpoint import read_checkpoint
from headrace_server.trainers.checkpoint_writer import CheckpointWriter
from headrace_server.trainers.loop import Loop
from headrace_server.trainers.ranks import Place, joined
from headrace_server.trainers.recipe import Recipe
from headrace_server.trainers.reports import StepCompleted, TrainerReport
from tests.doubles.tiny_task import TinyTask


def main() -> None:
    """Train."""
    job = json.loads(Path(sys.argv[1]).read_text())
    folder, recipe, place = Path(job["folder"]), Recipe.model_validate(job["recipe"]), Place.from_environment()
    torch.set_num_threads(1)
    stop, reports = threading.Event(), list[TrainerReport]()

    def report(said: TrainerReport) -> None:
        reports.append(said)
        if isinstance(said, StepCompleted) and said.step >= job["stop_at"] and place.rank == 0:
            stop.set()

    writer = CheckpointWriter(folder / "checkpoints", report) if place.rank == 0 else None
    task, device = TinyTask(**job["task"]), torch.device("cpu")
    torch.manual_seed(recipe.seed)
    network = task.make_network()
    with joined(place, device, recipe.strategy) as world:
        loop = Loop(task, network, recipe, device=device, report=report, checkpoints=writer, stop=stop, world=world)
        if job["resume_from"]:
            loop.restore(read_checkpoint(Path(job["resume_from"])))
        outcome = loop.run()
        weights = loop._learner.weights()
    if writer is not None:
        writer.close()
        save_file(weights, folder / "weights.safetensors")
    said = [outcome.value, *(one.model_dump(mode="json") for one in reports)]
    (folder / f"reports-{place.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
    os._exit(0)  # as trainers end: see trainers/__main__.py
