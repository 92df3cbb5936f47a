"""Makes a task of images: reads and splits them, and knows the loss, the measures and the program.

Pixels are standardised for each channel with the mean and deviation of the training images, so their range does not
matter.  The program takes images as `images.py` reads them: those of an archive scaled and as bytes, arrays as they
are, of any height and width, which it scales itself.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.errors import InvalidDataset
from headrace_server.tensors import Array, DataType, Signature, TensorSpec
from headrace_server.trainers.family import Parameters
from headrace_server.trainers.image_classification.augmentation import augment
from headrace_server.trainers.image_classification.images import (
    IMAGES_AT_ONCE,
    ArchiveImages,
    ArrayImages,
    Source,
    place,
)
from headrace_server.trainers.image_classification.network import ImageNetwork, ImageProgram
from headrace_server.trainers.image_classification.parameters import ImageClassificationParameters
from headrace_server.trainers.measures import CLASSIFICATION, measure_classes
from headrace_server.trainers.split import hold_out
from headrace_server.trainers.task import Material, Program, Rows, Task


def build(parameters: Parameters, material: Material) -> Task:
    """Read the images.  Raises InvalidDataset, or DataTooLarge."""
    assert isinstance(parameters, ImageClassificationParameters)
    source: Source
    if material.format is DatasetFormat.IMAGE_ZIP:
        source = ArchiveImages(material.path, parameters.image_size)
    else:
        source = ArrayImages(material.path, parameters)
    return ImageTask(parameters, source, material)


class ImageTask(Task):
    """One training over one set of images."""

    measures = CLASSIFICATION
    is_static = True

    def __init__(self, parameters: ImageClassificationParameters, source: Source, material: Material) -> None:
        self._parameters, self._image_size = parameters, source.size
        names, classes = _classes(source.labels)
        self._class_names = names
        training, held_out = hold_out(len(classes), material.holdout_fraction, material.seed, classes)
        images = place(source, training, held_out, material.memory_bytes, material.scratch)
        targets = torch.from_numpy(classes)
        self.training = Rows((images.training,), targets[training], images.is_filed)
        self.held_out = Rows((images.held_out,), targets[held_out], images.is_filed)
        self._compared = images.compared
        self._shape = (-1, *images.compared.shape[1:])
        self._mean, self._deviation = _channel_statistics(images.training)

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


def _channel_statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the deviation of each channel, computed in float64 a part at a time."""
    count = pixels[:, 0].numel()
    sums = torch.stack([part.double().sum(dim=(0, 2, 3)) for part in torch.split(pixels, IMAGES_AT_ONCE)]).sum(dim=0)
    mean = sums / count
    squares = [
        (part.double() - mean[:, None, None]).square().sum(dim=(0, 2, 3))
        for part in torch.split(pixels, IMAGES_AT_ONCE)
    ]
    return mean.float(), (torch.stack(squares).sum(dim=0) / count).sqrt().float()
