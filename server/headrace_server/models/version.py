"""What a model is: numbered immutable versions, each a few files with a signature and a history."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from headrace_server.models.ensemble import Ensemble
from headrace_server.models.serving import ServingOptions
from headrace_server.names import ModelName
from headrace_server.tensors import Signature


class ArtifactFormat(StrEnum):
    """What a file of a version is; names as in the contract."""

    ONNX = "ONNX"
    TORCH_EXPORT = "TORCH_EXPORT"
    SAFETENSORS = "SAFETENSORS"
    OTHER = "OTHER"
    CALIBRATION = "CALIBRATION"
    """Rows to judge plans with, as safetensors; see `models/calibration.py`."""


class Artifact(BaseModel):
    """One file of a version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    """The file name, unique in the version: "model.onnx", "program.pt2", "weights.safetensors"."""
    format: ArtifactFormat
    digest: str
    size_bytes: int
    key: str
    """Where it lies in the store."""


class Parity(BaseModel):
    """How far an exported program was from the trained network on held-out rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_rows: int
    max_abs_difference: float


class Lineage(BaseModel):
    """Where a version comes from; empty fields for files that were not trained here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    training_job: str = ""
    dataset_version: str = ""
    dataset_digest: str = ""
    checkpoint_digest: str = ""
    step: int = 0
    code_version: str = ""
    environment: dict[str, str] = {}
    spec: dict[str, Any] = {}
    parity: dict[str, Parity] = {}
    seed: int | None = None
    deterministic: bool = False
    start_from: str = ""
    """Whose weights the training began with: a version, or a job with "@latest" or "@best"."""
    start_from_digest: str = ""


class NewVersion(BaseModel):
    """A version before the registry has numbered it."""

    # A metric may be NaN, which JSON has no number for.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    model: str
    signature: Signature
    artifacts: tuple[Artifact, ...]
    metrics: dict[str, float] = {}
    lineage: Lineage = Lineage()
    ensemble: Ensemble | None = None
    """What it is made of, when it answers with other models; then it has no artifacts."""


class ModelVersion(NewVersion):
    """One immutable, numbered version."""

    version: int
    created_at: datetime

    @property
    def name(self) -> ModelName:
        """`models/{model}/versions/{version}`."""
        return ModelName(self.model, self.version)

    @property
    def key(self) -> tuple[str, int, str]:
        """What tells it from everything else that can be loaded."""
        return (self.model, self.version, "")

    @property
    def labels(self) -> tuple[str, str]:
        """The model and the version, as metrics have them."""
        return (self.model, str(self.version))

    def artifact(self, format: ArtifactFormat) -> Artifact | None:  # noqa: A002 - the contract's word
        """The first file of that format, if there is one."""
        return next((artifact for artifact in self.artifacts if artifact.format == format), None)


class Model(BaseModel):
    """A line of versions under one name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    latest_version: int
    aliases: dict[str, int]
    created_at: datetime
    serving: ServingOptions = ServingOptions()
