"""The two files that a trainer process reads and writes beside its pipe: the job it is to do, and what it exported."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.models.version import ArtifactFormat, Lineage
from headrace_server.tensors import Signature
from headrace_server.trainers.recipe import Recipe


class JobFile(BaseModel):
    """All that a trainer process needs to know.  The agent writes it to `job.json` in the workspace."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: str
    """`trainingJobs/{job}`, for messages only."""
    trainer: str
    """A name of the catalogue."""
    parameters: dict[str, Any]
    """Checked against the family's parameters, defaults filled in."""
    recipe: Recipe
    dataset_path: Path
    dataset_format: DatasetFormat
    dataset_digest: str = ""
    """"sha256:" and 64 hexadecimal digits of what lies at `dataset_path`; empty where nobody knows."""
    workspace: Path
    """A folder that belongs to this process; everything it writes goes below it."""
    resume_from: Path | None
    """A checkpoint folder to continue from."""
    start_from: Path | None = None
    """A file of weights (safetensors) to begin with, where there is no checkpoint to continue from."""
    gate: Path | None = None
    """Where to wait while predictions run, for a training that gives way to them."""
    compile_cache: Path | None = None
    """A folder of this machine where trainers keep compiled code for each other; None: each compiles for itself."""
    compile_cache_bytes: int = 4 << 30
    """How much may lie in it after a training."""
    report_descriptor: int
    """The file descriptor that reports go to, one JSON object a line."""


class ExportedArtifact(BaseModel):
    """One exported file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    """The file name in the export folder."""
    format: ArtifactFormat


class ExportManifest(BaseModel):
    """What an export folder holds, as `export.json` in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    signature: Signature
    artifacts: tuple[ExportedArtifact, ...]
    metrics: dict[str, float]
    """Measures of the best checkpoint on held-out rows."""
    lineage: Lineage
    """With what the trainer knows: step, environment, code version, parity.  The server adds the rest."""
