"""What can be asked of a training over images, and what of it does not fit a data set.  Knows no torch."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from headrace_server.datasets.dataset import Column, DatasetFormat, DatasetVersion
from headrace_server.errors import Violation
from headrace_server.trainers.family import Family, Parameters

_NUMBERS = ("int", "uint", "float")


class Augmentation(BaseModel):
    """Random changes of training images.  Evaluated images are never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip: bool = Field(False, description="Mirror half of the images left to right.")
    shift_pixels: int = Field(1, ge=0, le=32, description="Shift by up to this many pixels each way.")
    cutout_pixels: int = Field(0, ge=0, le=256, description="Hide a square of this side; 0 hides nothing.")


class ImageClassificationParameters(Parameters):
    """A small residual convolutional network, trained from scratch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int | None = Field(
        None, ge=8, le=512, description="Height and width to scale to; the first image's, at most 64, when absent."
    )
    width: int = Field(32, ge=4, le=512, description="Channels after the first layer; they double as images shrink.")
    blocks_per_stage: int = Field(1, ge=1, le=8, description="Residual blocks at each of the sizes.")
    augmentation: Augmentation = Field(Augmentation(), description="How training images are varied.")
    images: Annotated[str, BeforeValidator(lambda name: name or "images")] = Field(
        "images", description="For data sets of arrays: the array of images."
    )
    labels: Annotated[str, BeforeValidator(lambda name: name or "labels")] = Field(
        "labels", description="For data sets of arrays: the array of class numbers or names."
    )

    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="The share of certainty that training gives to all classes alike."
    )

    def violations(self, dataset: DatasetVersion) -> list[Violation]:
        """What does not fit these images, with fields relative to the parameters; empty when all fits."""
        if dataset.format is DatasetFormat.IMAGE_ZIP:
            found = list(_archive_violations(dataset))
        else:
            found = list(self._array_violations(dataset))
        if dataset.description.num_rows < 2:
            found.append(Violation("images", f"{dataset.name} has fewer than 2 images: one to train, one to hold out"))
        return found

    def _array_violations(self, dataset: DatasetVersion) -> Iterator[Violation]:
        arrays = {column.name: column for column in dataset.description.columns}
        for field, name in (("images", self.images), ("labels", self.labels)):
            if name not in arrays:
                yield Violation(field, f"{name!r} is not one of the arrays {', '.join(arrays)}")
        if self.images in arrays:
            yield from _image_violations(arrays[self.images])
        if self.labels in arrays and self.labels != self.images:
            yield from _label_violations(arrays[self.labels])
        if self.images == self.labels:
            yield Violation("labels", f"{self.labels!r} is also the array of images")


def _image_violations(images: Column) -> Iterator[Violation]:
    shape = f"[N, {', '.join(map(str, images.shape))}]" if images.shape else "[N]"
    if not images.type.startswith(_NUMBERS):
        yield Violation("images", f"{images.name!r} holds {images.type}; pixels must be numbers")
    if len(images.shape) not in (2, 3):
        yield Violation("images", f"{images.name!r} has the shape {shape}; must be [N, H, W] or [N, H, W, C]")
    elif len(images.shape) == 3 and images.shape[2] > 16:
        yield Violation("images", f"{images.name!r} has the shape {shape}; the last axis holds channels, at most 16")
    elif min(images.shape) == 0:
        yield Violation("images", f"{images.name!r} has the shape {shape}: there are no pixels")


def _label_violations(labels: Column) -> Iterator[Violation]:
    if labels.shape:
        shape = ", ".join(map(str, labels.shape))
        yield Violation("labels", f"{labels.name!r} has the shape [N, {shape}]; must be [N], one label an image")
    if labels.type.startswith("float"):
        yield Violation("labels", f"{labels.name!r} holds {labels.type}; labels are integers or text")


def _archive_violations(dataset: DatasetVersion) -> Iterator[Violation]:
    if len(dataset.description.class_names) < 2:
        yield Violation("images", f"{dataset.name} has one folder; there must be one for each of two or more classes")


IMAGE_CLASSIFICATION = Family(
    name="image_classification",
    title="A convolutional network over images",
    parameters=ImageClassificationParameters,
    formats=(DatasetFormat.NPZ, DatasetFormat.IMAGE_ZIP),
    metrics=("accuracy", "loss"),
    code="headrace_server.trainers.image_classification.task:build",
)
