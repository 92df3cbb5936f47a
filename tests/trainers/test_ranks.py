"""Several ranks make the training of one: real processes, joined by Gloo."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import load_file
from torch import Tensor

from headrace_server.trainers.checkpoint import read_checkpoint
from headrace_server.trainers.loop import Outcome
from headrace_server.trainers.micro_batches import parts_of_step, rows_of_rank
from headrace_server.trainers.ranks import ALONE, Place
from headrace_server.trainers.recipe import (
    AdamW,
    ConstantSchedule,
    Epochs,
    MovingAverage,
    Numerics,
    OnNonFinite,
    Recipe,
    Strategy,
)
from headrace_server.worker.ports import free_port
from tests.doubles.loop_run import Run
from tests.doubles.tiny_task import TinyTask

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 240
RECIPE = Recipe(
    length=Epochs(count=3),
    batch_size=8,
    optimizer=AdamW(learning_rate=0.01),
    schedule=ConstantSchedule(),
    seed=5,
)
NEVER = 1_000_000


class World:
    """The ranks of one job."""

    def __init__(
        self,
        folder: Path,
        size: int,
        recipe: Recipe = RECIPE,
        stop_at: int = NEVER,
        resume_from: Path | None = None,
        **task: Any,
    ) -> None:
        folder.mkdir()
        self.folder, self.size = folder, size
        job = {
            "folder": str(folder),
            "recipe": recipe.model_dump(mode="json"),
            "stop_at": stop_at,
            "resume_from": str(resume_from or ""),
            "task": {"is_plain": True, **task},
        }
        (folder / "job.json").write_text(json.dumps(job))
        ranks = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.doubles.rank", str(folder / "job.json")],
                cwd=ROOT,
                env={**os.environ, **({**ranks, "RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {})},
                stderr=subprocess.PIPE,
            )
            for rank in range(size)
        ]

    def end(self) -> "World":
        """Wait until all ranks have done their work."""
        for process in self.processes:
            _, complaints = process.communicate(timeout=PATIENCE_SECONDS)
            assert process.returncode == 0, complaints.decode()
        return self

    @property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "weights.safetensors")

    def said(self, rank: int = 0) -> list[Any]:
        """Its outcome, then its reports."""
        content: list[Any] = json.loads((self.folder / f"reports-{rank}.json").read_text())
        return content

    @property
    def last_checkpoint(self) -> Path:
        return max((self.folder / "checkpoints").iterdir())


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "num_rows"),
    [
        ({}, 37),
        # The last batch has one row, of which one of two ranks gets nothing; parts are uneven too.
        ({"micro_batches": 2, "max_gradient_norm": 0.1, "moving_average": MovingAverage(decay=0.9)}, 33),
        ({"strategy": Strategy.FULLY_SHARDED, "micro_batches": 2, "max_gradient_norm": 0.1}, 33),
        ({"strategy": Strategy.FULLY_SHARDED, "moving_average": MovingAverage(decay=0.9)}, 37),
        ({"numerics": Numerics(on_non_finite=OnNonFinite.SKIP)}, 37),
    ],
)
def test_two_ranks_make_the_steps_of_one(tmp_path: Path, changes: dict[str, Any], num_rows: int) -> None:
    recipe = RECIPE.model_copy(update=changes)

    one = World(tmp_path / "one", 1, recipe, num_rows=num_rows)
    two = World(tmp_path / "two", 2, recipe, num_rows=num_rows)

    assert_close(one.end().weights, two.end().weights)
    evaluations = [
        [(said["step"], said["is_best"]) for said in world.said()[1:] if said["kind"] == "evaluation_completed"]
        for world in (one, two)
    ]
    assert len(evaluations[0]) == 3
    assert evaluations[0] == evaluations[1]
    states = [read_checkpoint(world.last_checkpoint) for world in (one, two)]
    assert states[0].values.step == states[1].values.step
    assert set(states[1].tensors) - set(states[0].tensors) == {"random.augmentation.1", "random.cpu.1"}
    for name, tensor in states[0].tensors.items():
        if name.startswith(("optimizer.", "average.")):
            torch.testing.assert_close(states[1].tensors[name], tensor, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", Strategy)
def test_batch_normalisation_sees_the_rows_of_all_ranks(tmp_path: Path, strategy: Strategy) -> None:
    recipe = RECIPE.model_copy(update={"strategy": strategy, "batch_size": 9})  # 4 and 5 rows a rank
    apart = recipe.model_copy(update={"synchronize_batch_norm": False})

    one = World(tmp_path / "one", 1, recipe, num_rows=36, normalises=True).end()
    two = World(tmp_path / "two", 2, recipe, num_rows=36, normalises=True).end()
    other = World(tmp_path / "other", 2, apart, num_rows=36, normalises=True).end()

    assert_close(one.weights, two.weights)
    assert any(not torch.allclose(tensor, other.weights[name], rtol=1e-3) for name, tensor in one.weights.items())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", Strategy)
def test_a_training_of_two_ranks_goes_on_with_one_and_the_other_way_round(tmp_path: Path, strategy: Strategy) -> None:
    recipe = RECIPE.model_copy(update={"strategy": strategy, "moving_average": MovingAverage(decay=0.9)})
    whole = World(tmp_path / "whole", 1, recipe).end()

    first = World(tmp_path / "first", 2, recipe, stop_at=1).end()
    second = World(tmp_path / "second", 1, recipe, stop_at=1, resume_from=first.last_checkpoint).end()
    third = World(tmp_path / "third", 2, recipe, resume_from=second.last_checkpoint).end()

    assert [world.said()[0] for world in (first, second, third)] == ["stopped", "stopped", "completed"]
    assert first.said(rank=1)[0] == "stopped"
    assert_close(whole.weights, third.weights)


@pytest.mark.slow
def test_the_same_ranks_go_on_with_the_same_bits(tmp_path: Path) -> None:
    whole = World(tmp_path / "whole", 2, is_plain=False).end()

    first = World(tmp_path / "first", 2, stop_at=1, is_plain=False).end()
    second = World(tmp_path / "second", 2, resume_from=first.last_checkpoint, is_plain=False).end()

    assert all(torch.equal(tensor, second.weights[name]) for name, tensor in whole.weights.items())


@pytest.mark.slow
def test_two_ranks_begin_a_step_anew_that_one_rank_has_half_done(tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"micro_batches": 4})
    whole = World(tmp_path / "whole", 1, recipe).end()
    first = Run(tmp_path / "first", recipe, TinyTask(is_plain=True), stop_after=6)
    assert first.go() is Outcome.STOPPED
    checkpoint = Path(first.checkpoints[-1].folder)
    assert read_checkpoint(checkpoint).values.rows_done == 4

    second = World(tmp_path / "second", 2, recipe, resume_from=checkpoint).end()

    assert_close(whole.weights, second.weights)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", Strategy)
def test_ranks_that_stop_inside_a_step_undo_it_and_go_on_with_the_same_bits(tmp_path: Path, strategy: Strategy) -> None:
    recipe = RECIPE.model_copy(update={"strategy": strategy, "micro_batches": 2})
    whole = World(tmp_path / "whole", 2, recipe, is_plain=False).end()

    first = World(tmp_path / "first", 2, recipe, stop_at=1, is_plain=False).end()
    second = World(tmp_path / "second", 2, recipe, resume_from=first.last_checkpoint, is_plain=False).end()

    assert [said["kind"] for said in first.said()[1:]].count("step_completed") == 1  # before it was told to stop
    values = read_checkpoint(first.last_checkpoint).values
    assert (values.step, values.rows_done) == (1, 0)
    assert all(torch.equal(tensor, second.weights[name]) for name, tensor in whole.weights.items())


@pytest.mark.slow
def test_a_rank_that_dies_takes_the_others_with_it(tmp_path: Path) -> None:
    world = World(tmp_path / "w", 2, RECIPE.model_copy(update={"length": Epochs(count=1_000_000)}))
    checkpoints = world.folder / "checkpoints"
    first, second = world.processes
    while not (checkpoints.is_dir() and any(checkpoints.iterdir())):
        assert first.poll() is None
        assert second.poll() is None

    second.send_signal(signal.SIGKILL)
    _, complaints = first.communicate(timeout=PATIENCE_SECONDS)
    second.communicate(timeout=PATIENCE_SECONDS)

    assert first.returncode != 0
    assert b"RuntimeError" in complaints or b"DistBackendError" in complaints


@given(num_rows=st.integers(1, 200), micro_rows=st.integers(1, 50), size=st.integers(1, 5))
def test_parts_hold_each_row_once_and_ranks_meet_equally_often(num_rows: int, micro_rows: int, size: int) -> None:
    places = [Place(rank, size) for rank in range(size)]
    parts = [parts_of_step(num_rows, micro_rows, place) for place in places]

    held = [
        rows_of_rank(num_rows, place).start + row
        for place, own in zip(places, parts, strict=True)
        for part in own
        if part.share > 0
        for row in range(part.begin, part.end)
    ]
    assert held == list(range(num_rows))
    assert sum(part.share for own in parts for part in own) == pytest.approx(1)
    assert size == 1 or len({len(own) for own in parts}) == 1
    assert all(any(part.share > 0 for part in meeting) for meeting in zip(*parts, strict=True))
    assert all(0 <= part.begin < part.end <= max(2, micro_rows + 1) + part.begin for own in parts for part in own)
    for place, own in zip(places, parts, strict=True):
        mine = rows_of_rank(num_rows, place)
        assert all(part.end <= mine.stop - mine.start for part in own)


def test_what_is_left_of_a_step_are_its_other_parts() -> None:
    whole = parts_of_step(10, 4)

    assert [(part.begin, part.end) for part in whole] == [(0, 4), (4, 8), (8, 10)]
    assert parts_of_step(10, 4, done=4) == whole[1:]
    assert [(part.begin, part.end) for part in parts_of_step(9, 4)] == [(0, 4), (4, 9)]  # nobody is left alone


def test_a_process_without_ranks_is_alone() -> None:
    assert Place.from_environment({}) == ALONE.place
    place = Place.from_environment({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
    assert place == Place(3, 4, 1, 2)
