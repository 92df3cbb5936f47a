"""Rows that the memory does not hold are the rows that it would hold."""

import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.datasets.reading import describe_array, read_arrays, read_rows
from headrace_server.errors import InvalidDataset
from headrace_server.tensors import Array
from headrace_server.trainers.failures import DataTooLarge
from headrace_server.trainers.image_classification.parameters import Augmentation, ImageClassificationParameters
from headrace_server.trainers.image_classification.task import build
from headrace_server.trainers.loop import Outcome
from headrace_server.trainers.recipe import Epochs
from headrace_server.trainers.row_file import Put, map_rows
from headrace_server.trainers.task import Material, Task
from tests.doubles.loop_run import RECIPE, Run, same

PARAMETERS = ImageClassificationParameters(width=4, augmentation=Augmentation(flip=True))


def arrays(folder: Path, shape: tuple[int, ...], kind: str, is_compressed: bool = False) -> Path:
    path = folder / "images.npz"
    chance = np.random.default_rng(1)
    images = np.asfortranarray(chance.integers(0, 256, shape)) if kind == "column by column" else None
    if images is None:
        images = chance.integers(0, 256, shape).astype(kind)
    save = np.savez_compressed if is_compressed else np.savez
    save(path, images=images, labels=np.arange(shape[0]) % 3)
    return path


def archive(folder: Path, mode: str) -> Path:
    path = folder / "images.zip"
    chance = np.random.default_rng(1)
    with zipfile.ZipFile(path, "w") as file:
        for number in range(30):
            shape = (11, 9) if mode == "L" else (11, 9, 3)
            image = Image.fromarray(chance.integers(0, 256, shape).astype(np.uint8))
            with file.open(f"{'abc'[number % 3]}/{number}.png", "w") as entry:
                image.save(entry, "PNG")
    return path


def task(path: Path, memory_bytes: int | None, parameters: ImageClassificationParameters = PARAMETERS) -> Task:
    kind = DatasetFormat.NPZ if path.suffix == ".npz" else DatasetFormat.IMAGE_ZIP
    scratch = path.parent / "rows"
    return build(parameters, Material(path, kind, 0.25, 3, lambda *_: None, memory_bytes, scratch))


@pytest.mark.parametrize(
    ("shape", "kind", "is_compressed", "image_size"),
    [
        ((30, 8, 8), "uint8", False, None),
        ((30, 10, 12, 3), "uint8", True, None),
        ((2100, 8, 8), "float64", False, 16),
        ((30, 9, 9), "column by column", True, None),
    ],
)
def test_arrays_in_a_file_are_those_in_memory(
    tmp_path: Path, shape: tuple[int, ...], kind: str, is_compressed: bool, image_size: int | None
) -> None:
    path = arrays(tmp_path, shape, kind, is_compressed)
    parameters = PARAMETERS.model_copy(update={"image_size": image_size})

    in_memory, filed = task(path, None, parameters), task(path, 0, parameters)
    again = task(path, 0, parameters)  # another rank, or another process, finds the file

    assert not in_memory.training.is_filed
    for other in (filed, again):
        assert other.training.is_filed
        assert_same(in_memory, other)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_an_archive_in_a_file_is_the_one_in_memory(tmp_path: Path, mode: str) -> None:
    path = archive(tmp_path, mode)

    in_memory, filed = task(path, None), task(path, 0)

    assert filed.training.inputs[0].shape[1:] == (1 if mode == "L" else 3, 11, 11)
    assert_same(in_memory, filed)


def assert_same(one: Task, other: Task) -> None:
    for mine, theirs in ((one.training, other.training), (one.held_out, other.held_out)):
        assert torch.equal(mine.inputs[0], theirs.inputs[0])
        assert torch.equal(mine.targets, theirs.targets)
    networks = [task.make_network().eval() for task in (one, other)]
    programs = [task.program(network) for task, network in zip((one, other), networks, strict=True)]
    assert programs[0].signature == programs[1].signature
    assert torch.equal(programs[0].inputs[0], programs[1].inputs[0])
    assert torch.equal(networks[0].state_dict()["mean"], networks[1].state_dict()["mean"])


def test_a_training_from_a_file_ends_with_the_bits_of_one_in_memory(tmp_path: Path) -> None:
    path = archive(tmp_path, "RGB")
    recipe = RECIPE.model_copy(update={"length": Epochs(count=2)})
    in_memory, filed = Run(tmp_path / "1", recipe, task(path, None)), Run(tmp_path / "2", recipe, task(path, 0))

    outcomes = [in_memory.go(), filed.go()]

    assert outcomes == [Outcome.COMPLETED] * 2
    assert same(in_memory.weights, filed.weights)
    assert filed.steps[-1].step_seconds["data"] > 0


def test_what_does_not_fit_the_memory_decides(tmp_path: Path) -> None:
    path = arrays(tmp_path, (30, 8, 8), "uint8")

    assert not task(path, 30 * 64).training.is_filed
    assert task(path, 30 * 64 - 1).training.is_filed


def test_a_disk_without_room_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    def never(_: Put) -> None:
        raise AssertionError("nothing can be written")

    with pytest.raises(DataTooLarge, match="neither memory nor room on the disk"):
        map_rows(tmp_path / "rows", (1 << 55,), torch.uint8, never)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.lock"]


def test_ranks_share_a_file_that_one_of_them_writes(tmp_path: Path) -> None:
    num_written = []

    def write(put: Put) -> None:
        num_written.append(1)
        put(np.arange(6, dtype=np.float32).reshape(3, 2), np.array([2, 0, 1]))

    found: list[torch.Tensor] = []
    ranks = [
        threading.Thread(target=lambda: found.append(map_rows(tmp_path / "rows", (3, 2), torch.float32, write)))
        for _ in range(3)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)

    assert len(num_written) == 1
    for rows in found:
        assert rows.tolist() == [[2, 3], [4, 5], [0, 1]]


def test_what_one_changes_of_its_rows_nobody_else_sees(tmp_path: Path) -> None:
    def write(put: Put) -> None:
        put(np.ones((2, 1), np.uint8), np.arange(2))

    mine, theirs = (map_rows(tmp_path / "rows", (2, 1), torch.uint8, write) for _ in range(2))
    mine.zero_()

    assert theirs.tolist() == [[1], [1]]


@pytest.mark.parametrize("kind", ["uint8", "column by column", ">f4"])
def test_rows_of_an_array_are_read_some_at_a_time(tmp_path: Path, kind: str) -> None:
    path = arrays(tmp_path, (7, 2, 3), kind)

    blocks: list[Array] = list(read_rows(path, "images", 3))

    whole = read_arrays(path, ["images"])["images"]
    assert [len(block) for block in blocks] == [3, 3, 1]
    assert np.array_equal(np.concatenate(blocks), whole)
    assert describe_array(path, "images") == ((7, 2, 3), whole.dtype)
    assert all(block.dtype == whole.dtype for block in blocks)


def test_an_array_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = arrays(tmp_path, (7, 2, 3), "uint8")

    with pytest.raises(InvalidDataset, match="there is no array 'pictures'"):
        next(read_rows(path, "pictures", 3))
