"""Images: arrays and archives, augmentation, and the program that takes them raw."""

import io
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from headrace_server.datasets.dataset import Column, DatasetFormat, DatasetVersion, Description
from headrace_server.errors import InvalidDataset
from headrace_server.tensors import Array, DataType
from headrace_server.trainers.image_classification.augmentation import augment
from headrace_server.trainers.image_classification.network import ImageNetwork, num_stages, resize
from headrace_server.trainers.image_classification.parameters import Augmentation, ImageClassificationParameters
from headrace_server.trainers.image_classification.task import ImageTask, build
from headrace_server.trainers.task import Material

SMALL = {"width": 4}


def built(path: Path, data_format: DatasetFormat, **parameters: Any) -> ImageTask:
    material = Material(path, data_format, 0.25, seed=3, warn=lambda *_: None)
    task = build(ImageClassificationParameters.model_validate({**SMALL, **parameters}), material)
    assert isinstance(task, ImageTask)
    return task


def arrays(folder: Path, **content: Array) -> Path:
    path = folder / "images.npz"
    np.savez(path, **content)  # type: ignore[arg-type]
    return path


def archive(folder: Path, modes: tuple[str, ...] = ("RGB",), size: tuple[int, int] = (20, 10)) -> Path:
    path = folder / "images.zip"
    with zipfile.ZipFile(path, "w") as file:
        for number in range(12):
            shade = 20 * number
            mode = modes[number % len(modes)]
            content = io.BytesIO()
            Image.new("RGB", size, (shade, shade, shade)).convert(mode).save(content, "PNG")
            file.writestr(f"{('dark', 'light')[number // 6]}/{number}.png", content.getvalue())
    return path


@pytest.mark.parametrize(
    ("shape", "dtype", "data_type"),
    [
        ((20, 8, 8), np.uint8, DataType.UINT8),
        ((20, 12, 9), np.float64, DataType.FP32),
        ((20, 8, 8, 3), np.uint8, DataType.UINT8),
        ((20, 130, 100, 1), np.int16, DataType.FP32),
    ],
)
def test_arrays_are_served_in_the_shape_that_they_came_in(
    tmp_path: Path, shape: tuple[int, ...], dtype: type[np.generic], data_type: DataType
) -> None:
    images = np.random.default_rng(1).integers(0, 200, shape).astype(dtype)
    path = arrays(tmp_path, images=images, labels=np.arange(20) % 3)

    task = built(path, DatasetFormat.NPZ)
    program = task.program(task.make_network().eval())

    (image,) = program.signature.inputs
    assert (image.name, image.data_type, image.shape) == ("image", data_type, (-1, *shape[1:]))
    scores, label = program.module(torch.from_numpy(images[:3]).to(program.inputs[0].dtype))
    assert scores.shape == (3, 3)
    assert torch.equal(label, scores.argmax(dim=1))
    assert program.signature.outputs[0].class_names == ("0", "1", "2")


def test_serving_scales_exactly_as_training_does(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 255, (20, 100, 70, 3)).astype(np.uint8)
    task = built(arrays(tmp_path, images=images, labels=np.arange(20) % 2), DatasetFormat.NPZ, image_size=16)
    network = task.make_network().eval()
    program = task.program(network)

    with torch.no_grad():
        trained_on = torch.softmax(network(*task.held_out.inputs), dim=1)
        served = program.module(*program.inputs)[0]

    torch.testing.assert_close(served, trained_on)


def test_labels_may_be_texts(tmp_path: Path) -> None:
    labels = np.array(["zebra", "ape"] * 10)
    path = arrays(tmp_path, pictures=np.ones((20, 8, 8)), names=labels)

    task = built(path, DatasetFormat.NPZ, images="pictures", labels="names")

    assert task.program(task.make_network().eval()).signature.outputs[0].class_names == ("ape", "zebra")


def test_an_archive_is_scaled_and_served_as_bytes(tmp_path: Path) -> None:
    task = built(archive(tmp_path), DatasetFormat.IMAGE_ZIP, image_size=8)

    program = task.program(task.make_network().eval())

    (image,) = program.signature.inputs
    assert (image.shape, image.data_type) == ((-1, 8, 8, 3), DataType.UINT8)
    assert program.signature.outputs[0].class_names == ("dark", "light")
    assert len(task.training) + len(task.held_out) == 12


def test_an_archive_of_grey_images_has_one_channel_and_one_of_some_has_three(tmp_path: Path) -> None:
    grey = built(archive(tmp_path, modes=("L", "1")), DatasetFormat.IMAGE_ZIP)
    assert grey.training.inputs[0].shape[1:] == (1, 20, 20)  # the longer side of the first image

    mixed = built(archive(tmp_path, modes=("L", "P", "RGBA")), DatasetFormat.IMAGE_ZIP)
    assert mixed.training.inputs[0].shape[1:] == (3, 20, 20)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": np.ones((9, 8)), "labels": np.arange(9)}, r"float64 in the shape \[9, 8\]"),
        ({"images": np.ones((9, 8, 8)), "labels": np.ones((9, 2))}, r"the shape \[9, 2\], must be \[9\]"),
        ({"images": np.ones((9, 8, 8)), "labels": np.zeros(9, int)}, "every image is of the class 0"),
        ({"images": np.ones((9, 8, 8)), "other": np.zeros(9)}, "no array .*labels"),
        ({"images": np.array([["a"]]), "labels": np.arange(1)}, "<U1 in the shape"),
        (
            {
                "images": np.where(np.arange(9)[:, None, None] == 4, np.nan, np.ones((9, 8, 8))),
                "labels": np.arange(9) % 2,
            },
            "NaN or infinity in image 5",
        ),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path: Path, content: dict[str, Array], message: str) -> None:
    with pytest.raises(InvalidDataset, match=message):
        built(arrays(tmp_path, **content), DatasetFormat.NPZ)


def test_augmentation_repeats_itself_for_the_same_generator_and_spares_its_input() -> None:
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).reshape(2, 3, 8, 8)
    before = images.clone()
    what = Augmentation(flip=True, shift_pixels=2, cutout_pixels=3)

    one = augment(images, what, torch.Generator().manual_seed(1), torch.zeros(3))
    two = augment(images, what, torch.Generator().manual_seed(1), torch.zeros(3))
    three = augment(images, what, torch.Generator().manual_seed(2), torch.zeros(3))

    assert torch.equal(images, before)
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    assert one.dtype == torch.uint8


def test_a_shift_moves_the_whole_image_and_repeats_its_border() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)

    shifted = augment(image, Augmentation(shift_pixels=1), torch.Generator().manual_seed(0), torch.zeros(1))

    padded = torch.nn.functional.pad(image, (1, 1, 1, 1), mode="replicate")
    windows = [padded[:, :, top : top + 4, left : left + 4] for top in range(3) for left in range(3)]
    assert any(torch.equal(shifted, window) for window in windows)


def test_mirroring_is_left_to_right_for_about_half() -> None:
    images = torch.arange(4.0).expand(1000, 1, 4, 4)

    changed = augment(images, Augmentation(flip=True, shift_pixels=0), torch.Generator().manual_seed(0), torch.zeros(1))

    is_mirrored = (changed == images.flip(3)).all(dim=(1, 2, 3))
    is_same = (changed == images).all(dim=(1, 2, 3))
    assert bool((is_mirrored | is_same).all())
    assert 400 < int(is_mirrored.sum()) < 600


def test_hidden_squares_are_filled_and_no_larger_than_asked_for() -> None:
    images = torch.ones(50, 2, 10, 10)

    changed = augment(
        images,
        Augmentation(shift_pixels=0, cutout_pixels=4),
        torch.Generator().manual_seed(0),
        torch.tensor([7.0, 8.0]),
    )

    num_hidden = (changed[:, 0] == 7).sum(dim=(1, 2))
    assert torch.equal(changed[:, 0] == 7, changed[:, 1] == 8)
    assert int(num_hidden.max()) == 16
    assert int(num_hidden.min()) >= 4


@pytest.mark.parametrize(("image_size", "stages"), [(8, 2), (12, 2), (28, 3), (32, 4), (64, 5), (224, 4), (512, 5)])
def test_the_network_ends_at_a_map_of_four_to_seven_pixels(image_size: int, stages: int) -> None:
    assert num_stages(image_size) == stages

    network = ImageNetwork(image_size, 4, 1, 3, torch.zeros(1), torch.ones(1)).eval()
    with torch.no_grad():
        maps = network.layers(torch.zeros(1, 1, image_size, image_size))

    assert maps.shape[1] == 4 * 2 ** (stages - 1)
    assert 4 <= maps.shape[2] <= 7


def test_shrinking_averages_and_equal_size_copies_nothing() -> None:
    pixels = torch.arange(16.0).reshape(1, 1, 4, 4)

    assert resize(pixels, 4) is pixels
    assert resize(pixels, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def version(*columns: Column, data_format: DatasetFormat = DatasetFormat.NPZ) -> DatasetVersion:
    return DatasetVersion(
        dataset="digits",
        format=data_format,
        digest="sha256:" + "0" * 64,
        size_bytes=1,
        description=Description(num_rows=10, columns=columns),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


GOOD = (Column(name="images", type="uint8", shape=(8, 8)), Column(name="labels", type="int64"))


def test_arrays_that_fit_have_no_violations() -> None:
    assert ImageClassificationParameters().violations(version(*GOOD)) == []


@pytest.mark.parametrize(
    ("columns", "parameters", "fields"),
    [
        ((), {}, ["images", "labels"]),
        ((Column(name="images", type="uint8", shape=(8,)), GOOD[1]), {}, ["images"]),
        ((Column(name="images", type="uint8", shape=(8, 8, 3, 1)), GOOD[1]), {}, ["images"]),
        ((Column(name="images", type="uint8", shape=(3, 32, 32)), GOOD[1]), {}, ["images"]),
        ((Column(name="images", type="string", shape=(8, 8)), GOOD[1]), {}, ["images"]),
        ((GOOD[0], Column(name="labels", type="int64", shape=(2,))), {}, ["labels"]),
        ((GOOD[0], Column(name="labels", type="float32")), {}, ["labels"]),
        (GOOD, {"labels": "images"}, ["labels"]),
        (GOOD, {"images": "pictures"}, ["images"]),
    ],
)
def test_arrays_that_do_not_fit_are_told_by_field(
    columns: tuple[Column, ...], parameters: dict[str, Any], fields: list[str]
) -> None:
    violations = ImageClassificationParameters.model_validate(parameters).violations(version(*columns))

    assert [violation.field for violation in violations] == fields


def test_empty_names_mean_the_usual_ones() -> None:
    parameters = ImageClassificationParameters.model_validate({"images": "", "labels": ""})

    assert (parameters.images, parameters.labels) == ("images", "labels")
