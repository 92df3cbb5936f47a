"""Makes a task of images: reads and splits them, and knows the loss, the measures and the program.

Pixels are standardised for each channel with the mean and deviation of the training images, so their range does not
matter.  Images of an archive are scaled to the size of the network, and are grey if all of them are; the program takes
them like that, as bytes.  Arrays are taken as they are: uint8 as bytes, everything else as float32, of any height and
width, which the program scales itself.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.datasets.reading import read_arrays, read_images
from headrace_server.errors import InvalidDataset
from headrace_server.tensors import Array, DataType, Signature, TensorSpec
from headrace_server.trainers.family import Parameters
from headrace_server.trainers.image_classification.augmentation import augment
from headrace_server.trainers.image_classification.network import ImageNetwork, ImageProgram, channels_first, resize
from headrace_server.trainers.image_classification.parameters import ImageClassificationParameters
from headrace_server.trainers.measures import CLASSIFICATION, measure_classes
from headrace_server.trainers.split import hold_out
from headrace_server.trainers.task import Material, Program, Rows, Task

_COMPARED_IMAGES = 64
_DEFAULT_SIZE = 64
_GREY_MODES = ("1", "L", "LA", "I;16", "I", "F")
_IMAGES_AT_ONCE = 1024


def build(parameters: Parameters, material: Material) -> Task:
    """Read the images.  Raises InvalidDataset."""
    assert isinstance(parameters, ImageClassificationParameters)
    if material.format is DatasetFormat.IMAGE_ZIP:
        images, labels, size = _read_archive(material.path, parameters.image_size)
    else:
        images, labels = _read_arrays(material.path, parameters)
        size = parameters.image_size or min(_DEFAULT_SIZE, max(images.shape[1:3]))
    return ImageTask(parameters, images, labels, max(8, size), material)


class ImageTask(Task):
    """One training over one set of images."""

    measures = CLASSIFICATION
    is_static = True

    def __init__(
        self,
        parameters: ImageClassificationParameters,
        images: Array,
        labels: Array,
        image_size: int,
        material: Material,
    ) -> None:
        self._parameters, self._image_size = parameters, image_size
        names, classes = _classes(labels)
        self._class_names = names
        training, held_out = hold_out(len(classes), material.holdout_fraction, material.seed, classes)
        raw, targets = torch.from_numpy(images), torch.from_numpy(classes)
        pixels = _resized(raw, image_size)
        self.training = Rows((pixels[training],), targets[training])
        self.held_out = Rows((pixels[held_out],), targets[held_out])
        self._compared = raw[held_out[:_COMPARED_IMAGES]]
        self._shape = (-1, *images.shape[1:])
        self._mean, self._deviation = _channel_statistics(self.training.inputs[0])

    def make_network(self) -> nn.Module:
        """A residual network of the width and depth that were asked for."""
        return ImageNetwork(
            image_size=self._image_size,
            width=self._parameters.width,
            blocks_per_stage=self._parameters.blocks_per_stage,
            num_classes=len(self._class_names),
            mean=self._mean,
            deviation=self._deviation,
        )

    def augment(self, inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Shifted, mirrored, partly hidden, as the parameters say."""
        (pixels,) = inputs
        return (augment(pixels, self._parameters.augmentation, generator, self._mean.to(pixels.device)),)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(outputs, targets, label_smoothing=self._parameters.label_smoothing)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Accuracy and loss."""
        return measure_classes(outputs, targets)

    def program(self, network: nn.Module) -> Program:
        """`image` in; `scores` and `label` out."""
        assert isinstance(network, ImageNetwork)
        is_bytes = self._compared.dtype is torch.uint8
        image = TensorSpec(
            name="image",
            data_type=DataType.UINT8 if is_bytes else DataType.FP32,
            shape=self._shape,
            finite_only=not is_bytes,
        )
        num_classes = len(self._class_names)
        scores = TensorSpec(
            name="scores", data_type=DataType.FP32, shape=(-1, num_classes), class_names=self._class_names
        )
        label = TensorSpec(name="label", data_type=DataType.INT64, shape=(-1,))
        module = ImageProgram(network, self._image_size).eval()
        targets = self.held_out.targets[: len(self._compared)]
        return Program(module, Signature(inputs=(image,), outputs=(scores, label)), (self._compared,), targets)


def _classes(labels: Array) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The classes, sorted (numbers by size), and the number of each label's class."""
    found, numbers = np.unique(labels, return_inverse=True)
    if len(found) < 2:
        raise InvalidDataset(f"every image is of the class {found[0]!s}: nothing to tell apart")
    if len(found) > max(1000, len(labels) / 2):
        raise InvalidDataset(f"{len(found):,} classes of {len(labels):,} images are too many")
    return tuple(str(name) for name in found.tolist()), numbers.astype(np.int64)


def _read_arrays(path: Path, parameters: ImageClassificationParameters) -> tuple[Array, Array]:
    arrays = read_arrays(path, [parameters.images, parameters.labels])
    images, labels = arrays[parameters.images], arrays[parameters.labels]
    if images.ndim not in (3, 4) or images.dtype.kind not in "iuf":
        raise InvalidDataset(
            f"the array {parameters.images!r} holds {images.dtype} in the shape {list(images.shape)}; "
            "must be numbers [N, H, W] or [N, H, W, C]"
        )
    if labels.shape != images.shape[:1]:
        raise InvalidDataset(
            f"the array {parameters.labels!r} has the shape {list(labels.shape)}, must be [{len(images)}]"
        )
    if images.dtype != np.uint8:
        images = images.astype(np.float32)
        is_finite = np.isfinite(images).reshape(len(images), -1).all(axis=1)
        if not is_finite.all():
            row = int(np.flatnonzero(~is_finite)[0]) + 1
            raise InvalidDataset(f"the array {parameters.images!r} holds NaN or infinity in image {row}", row=row)
    return images, labels


def _read_archive(path: Path, image_size: int | None) -> tuple[Array, Array, int]:
    """The images [N, size, size] if all are grey, else [N, size, size, 3], their classes, and the size."""
    size = image_size
    images, labels, is_grey = [], [], True
    for class_name, image in read_images(path):
        if size is None:
            size = max(8, min(_DEFAULT_SIZE, max(image.size)))
        is_grey = is_grey and image.mode in _GREY_MODES
        scaled = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        images.append(np.asarray(scaled))
        labels.append(class_name)
    if size is None:
        raise InvalidDataset("there are no images", DatasetFormat.IMAGE_ZIP)
    pixels = np.stack(images)
    return (np.ascontiguousarray(pixels[..., 0]) if is_grey else pixels), np.array(labels), size


def _resized(raw: Tensor, size: int) -> Tensor:
    """Pixels [N, C, size, size]."""
    parts = [resize(channels_first(part), size) for part in torch.split(raw, _IMAGES_AT_ONCE)]
    return torch.cat(parts).contiguous()


def _channel_statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the deviation of each channel, computed in float64 a part at a time."""
    count = pixels[:, 0].numel()
    sums = torch.stack([part.double().sum(dim=(0, 2, 3)) for part in torch.split(pixels, _IMAGES_AT_ONCE)]).sum(dim=0)
    mean = sums / count
    squares = [
        (part.double() - mean[:, None, None]).square().sum(dim=(0, 2, 3))
        for part in torch.split(pixels, _IMAGES_AT_ONCE)
    ]
    return mean.float(), (torch.stack(squares).sum(dim=0) / count).sqrt().float()
