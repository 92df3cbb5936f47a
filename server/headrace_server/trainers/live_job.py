"""What serving needs to know of a training job, also while it trains: where it is, what it keeps, how it was made.

Knows neither the desk of training nor the engine: it is what the one tells the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.names import JobName
from headrace_server.storage.blob_store import Blob
from headrace_server.trainers.recipe import Recipe


@dataclass(frozen=True, slots=True)
class LiveJob:
    """A job at one moment."""

    name: JobName
    state: str
    is_over: bool
    ended_at: datetime | None
    latest_step: int
    """The last one that it has reported."""
    latest: str | None
    """The key of the manifest of its newest checkpoint; None before the first."""
    best: str | None
    """That of the checkpoint of its best evaluation."""
    model: str
    """`models/{model}`: what it is to become a version of."""
    trainer: str
    parameters: Mapping[str, Any]
    recipe: Recipe
    dataset: str
    """`datasets/{dataset}/versions/{version}`."""
    dataset_digest: str


@dataclass(frozen=True, slots=True)
class KeptCheckpoint:
    """A complete checkpoint in the store."""

    step: int
    digest: str
    """Of its manifest, which vouches for every file."""
    saved_at: datetime
    files: Mapping[str, Blob]
    """By name: "weights.safetensors", and for a network with averaged weights "best.safetensors"."""


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a data set in the store."""

    key: str
    format: DatasetFormat
    digest: str
