"""Where images come from, and where they lie while a network learns from them: in memory, or in a file of rows.

Images of an archive are scaled to the size of the network, and are grey if all of them are.  Arrays are taken as they
are: uint8 as bytes, everything else as float32, of any height and width.  Either way, a training sees pixels
[N, C, size, size], the same ones wherever they lie.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.datasets.reading import describe_array, list_classes, read_arrays, read_images, read_rows
from headrace_server.errors import InvalidDataset
from headrace_server.tensors import Array
from headrace_server.trainers.image_classification.network import channels_first, resize
from headrace_server.trainers.image_classification.parameters import ImageClassificationParameters
from headrace_server.trainers.row_file import Put, map_rows

IMAGES_AT_ONCE = 1024
_COMPARED_IMAGES = 64
_SMALLEST, _DEFAULT_SIZE = 8, 64
_GREY_MODES = ("1", "L", "LA", "I;16", "I", "F")


@dataclass(frozen=True, slots=True)
class Images:
    """The images of a training, divided."""

    training: Tensor
    held_out: Tensor
    """Pixels [N, C, size, size]."""
    compared: Tensor
    """The first of those held out, as callers send them."""
    is_filed: bool
    """Whether the pixels are mapped from a file."""


class Source(ABC):
    """A content with images."""

    labels: Array
    """The class of each."""
    size: int
    """Height and width that they are scaled to."""

    @property
    @abstractmethod
    def pixels(self) -> tuple[int, torch.dtype]:
        """How many channels each image may have, and the type of a pixel, once they are scaled."""

    @abstractmethod
    def blocks(self) -> Iterator[Array]:
        """All images [n, H, W] or [n, H, W, C], some at a time, as callers send them.  Raises InvalidDataset."""

    def prepare(self, block: Array) -> Tensor:
        """Pixels [n, C, size, size] of a block."""
        return resize(channels_first(torch.from_numpy(block)), self.size).contiguous()

    def finish(self, images: Tensor) -> Tensor:
        """What is left of prepared images once all of them were seen."""
        return images

    def finish_raw(self, images: Tensor) -> Tensor:
        """The same for images as callers send them."""
        return images


class ArrayImages(Source):
    """Two arrays of an NPZ."""

    def __init__(self, path: Path, parameters: ImageClassificationParameters) -> None:
        self._path, self._name = path, parameters.images
        self._shape, self._type = describe_array(path, parameters.images)
        self.labels = read_arrays(path, [parameters.labels])[parameters.labels]
        if len(self._shape) not in (3, 4) or self._type.kind not in "iuf":
            raise InvalidDataset(
                f"the array {parameters.images!r} holds {self._type} in the shape {list(self._shape)}; "
                "must be numbers [N, H, W] or [N, H, W, C]"
            )
        if self.labels.shape != self._shape[:1]:
            raise InvalidDataset(
                f"the array {parameters.labels!r} has the shape {list(self.labels.shape)}, must be [{self._shape[0]}]"
            )
        self.size = max(_SMALLEST, parameters.image_size or min(_DEFAULT_SIZE, max(self._shape[1:3])))

    @property
    def pixels(self) -> tuple[int, torch.dtype]:
        """Bytes stay bytes unless they are scaled."""
        is_scaled = self._shape[1:3] != (self.size, self.size)
        channels = 1 if len(self._shape) == 3 else self._shape[3]
        return channels, torch.uint8 if self._type == np.uint8 and not is_scaled else torch.float32

    def blocks(self) -> Iterator[Array]:
        """As bytes or as float32."""
        begin = 0
        for block in read_rows(self._path, self._name, IMAGES_AT_ONCE):
            if block.dtype == np.uint8:
                yield block
                continue
            images = block.astype(np.float32)
            is_finite = np.isfinite(images).reshape(len(images), -1).all(axis=1)
            if not is_finite.all():
                row = begin + int(np.flatnonzero(~is_finite)[0]) + 1
                raise InvalidDataset(f"the array {self._name!r} holds NaN or infinity in image {row}", row=row)
            yield images
            begin += len(images)


class ArchiveImages(Source):
    """An IMAGE_ZIP.  Images count as coloured until all of them were seen to be grey."""

    def __init__(self, path: Path, image_size: int | None) -> None:
        self._path = path
        self.labels = np.array(list_classes(path))
        if not len(self.labels):
            raise InvalidDataset("there are no images", DatasetFormat.IMAGE_ZIP)
        _, first = next(read_images(path))
        self.size = max(_SMALLEST, image_size or min(_DEFAULT_SIZE, max(first.size)))
        self._is_grey = True

    @property
    def pixels(self) -> tuple[int, torch.dtype]:
        """Red, green and blue bytes."""
        return 3, torch.uint8

    def blocks(self) -> Iterator[Array]:
        """Red, green and blue."""
        images: list[Array] = []
        for _, image in read_images(self._path):
            self._is_grey = self._is_grey and image.mode in _GREY_MODES
            images.append(np.asarray(image.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)))
            if len(images) == IMAGES_AT_ONCE:
                yield np.stack(images)
                images = []
        if images:
            yield np.stack(images)

    def finish(self, images: Tensor) -> Tensor:
        """One channel is enough for grey."""
        return images[:, :1] if self._is_grey else images

    def finish_raw(self, images: Tensor) -> Tensor:
        """Grey ones have no axis for channels."""
        return images[..., 0].contiguous() if self._is_grey else images


def place(
    source: Source,
    training: NDArray[np.int64],
    held_out: NDArray[np.int64],
    memory_bytes: int | None,
    scratch: Path | None,
) -> Images:
    """Read all images and divide them; into a file below `scratch` when they would fill more of the memory than that.

    Raises InvalidDataset, and DataTooLarge when the disk has no room either.
    """
    channels, dtype = source.pixels
    shape = (len(source.labels), channels, source.size, source.size)
    compared = _Compared(held_out[:_COMPARED_IMAGES])
    split = np.concatenate([training, held_out])
    place_of = np.empty(len(split), np.int64)  # in the file, where training rows come first
    place_of[split] = np.arange(len(split))

    def write(put: Put) -> None:
        begin = 0
        for block in source.blocks():
            compared.note(block, begin)
            put(source.prepare(block).numpy(), place_of[begin : begin + len(block)])
            begin += len(block)

    num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    is_filed = memory_bytes is not None and num_bytes > memory_bytes
    if is_filed:
        assert scratch is not None
        pixels = map_rows(scratch / "pixels", shape, dtype, write)
        compared.look(source)
    else:
        pixels = torch.empty(shape, dtype=dtype)
        held = pixels.numpy()

        def put(rows: Array, places: Array) -> None:
            held[places] = rows

        write(put)
    pixels = source.finish(pixels)
    if not is_filed:
        pixels = pixels.contiguous()
    parts = pixels[: len(training)], pixels[len(training) :]
    return Images(*parts, source.finish_raw(compared.images), is_filed)


class _Compared:
    """Some images as callers send them, picked as all of them go by."""

    def __init__(self, rows: NDArray[np.int64]) -> None:
        self._found: dict[int, Array | None] = dict.fromkeys(rows.tolist())

    def note(self, block: Array, begin: int) -> None:
        for row in self._found:
            if begin <= row < begin + len(block):
                self._found[row] = block[row - begin].copy()  # without the rest of the block

    def look(self, source: Source) -> None:
        """Where somebody else wrote the file, nothing went by yet."""
        begin = 0
        if any(image is None for image in self._found.values()):
            for block in source.blocks():
                self.note(block, begin)
                begin += len(block)

    @property
    def images(self) -> Tensor:
        return torch.from_numpy(np.stack([image for image in self._found.values() if image is not None]))
