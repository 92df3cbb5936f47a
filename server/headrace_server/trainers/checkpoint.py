"""Writes the state of a training to a folder, and reads it back.  Nothing in a folder is code, or pickled.

    weights.safetensors   the network as it is
    best.safetensors      what its best evaluation was of; absent before the first, and when that is now
    state.safetensors     the optimizer, the average, the random generators, the loss scale, half-summed gradients
    state.json            plain values, and the size and digest of every other file

A folder appears complete or not at all: it is written under another name, then renamed.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from headrace_server.errors import InvalidSpec, Violation
from headrace_server.trainers.failures import CheckpointDamaged
from headrace_server.trainers.tensor_file import write_tensors
from headrace_server.trainers.yardstick import Standing

WEIGHTS, BEST, STATE, VALUES = "weights.safetensors", "best.safetensors", "state.safetensors", "state.json"
_PARTIAL = ".partial"


class FileFacts(BaseModel):
    """What a file must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size_bytes: int
    sha256: str


class Values(BaseModel):
    """The plain values of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: Literal[1] = 1
    """Raised when the layout of checkpoints changes."""
    step: int
    """Optimizer steps that were done; epoch and place in it follow from this."""
    rows_done: int = 0
    """Rows of the next step whose gradients are summed already."""
    num_rows: int
    """Training rows, to notice other data."""
    is_over: bool
    """Whether the training ended here, as planned or early."""
    standing: Standing
    versions: dict[str, str]
    """What it was made with and on: versions, machine, data set."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a training after a step.  Its tensors lie on the CPU and belong to nobody else."""

    weights: Mapping[str, Tensor]
    best_weights: Mapping[str, Tensor] | None
    """The very same object as `weights` when this is the best, unless the best ones are averages."""
    tensors: Mapping[str, Tensor]
    values: Values


def copy_to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that later steps do not change."""
    return {name: torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format).copy_(tensor)
            for name, tensor in tensors.items()}  # fmt: skip


def write_checkpoint(checkpoint: Checkpoint, folder: Path) -> dict[str, str]:
    """Make `folder`, which must not exist; returns the digests of the files with tensors, as "sha256:" and hex.

    Raises OSError, and then leaves nothing behind.
    """
    partial = folder.with_name(folder.name + _PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        facts = {name: _write(partial / name, tensors) for name, tensors in _contents(checkpoint).items()}
        document = {"files": {name: fact.model_dump() for name, fact in facts.items()}}
        document["values"] = checkpoint.values.model_dump(mode="json")
        (partial / VALUES).write_text(_Document.model_validate(document).model_dump_json(indent=1), encoding="utf-8")
        os.rename(partial, folder)  # noqa: PTH104 - refuses to replace a folder that holds something
        return {name: f"sha256:{fact.sha256}" for name, fact in facts.items()}
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def remove_partial(folder: Path) -> None:
    """Remove from below `folder` what a process that was killed had half written."""
    for partial in folder.glob(f"*{_PARTIAL}"):
        shutil.rmtree(partial)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a folder back.  Raises CheckpointDamaged when anything in it is not as it was written."""
    try:
        document = _Document.model_validate_json((folder / VALUES).read_bytes())
        for name, facts in document.files.items():
            if _facts(folder / name) != facts:
                raise CheckpointDamaged(folder, f"{name} is not what was written")
        contents = {name: load_file(folder / name) for name in document.files}
        weights, tensors = contents[WEIGHTS], contents[STATE]
    except ValidationError as error:
        raise CheckpointDamaged(folder, f"{VALUES} cannot be read: {error.errors()[0]['msg']}") from error
    except KeyError as error:
        raise CheckpointDamaged(folder, f"{VALUES} does not list {error}") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointDamaged(folder, str(error)) from error
    is_best = document.values.standing.best_step == document.values.step
    best_weights = contents.get(BEST, weights if is_best else None)
    return Checkpoint(weights, best_weights, tensors, document.values)


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """The weights in a file of them.  Raises InvalidSpec when it cannot be read."""
    try:
        weights: Mapping[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InvalidSpec([Violation("start_from", f"its weights cannot be read: {error}")]) from error
    return weights


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    values: Values
    files: dict[str, FileFacts]

    @field_validator("files")
    @classmethod
    def _check_names(cls, files: dict[str, FileFacts]) -> dict[str, FileFacts]:
        if unknown := set(files) - {WEIGHTS, BEST, STATE}:
            raise ValueError(f"{min(unknown)!r} is not a file of a checkpoint")
        return files


def _contents(checkpoint: Checkpoint) -> dict[str, Mapping[str, Tensor]]:
    contents = {WEIGHTS: checkpoint.weights, STATE: checkpoint.tensors}
    if checkpoint.best_weights is not None and checkpoint.best_weights is not checkpoint.weights:
        contents[BEST] = checkpoint.best_weights
    return contents


def _write(path: Path, tensors: Mapping[str, Tensor]) -> FileFacts:
    size_bytes, sha256 = write_tensors(path, tensors)
    return FileFacts(size_bytes=size_bytes, sha256=sha256)


def _facts(path: Path) -> FileFacts:
    with path.open("rb") as file:
        return FileFacts(size_bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
