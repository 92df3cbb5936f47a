"""How to train, whatever is trained: length, batches, optimizer, schedule, evaluation.  Knows no torch."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from headrace_server.precision import Precision


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AdamW(_Part):
    """Decoupled weight decay (Loshchilov and Hutter, 2019)."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(0.001, gt=0, le=10)
    weight_decay: float = Field(0.01, ge=0, le=10)


class Sgd(_Part):
    """Stochastic gradient descent with Nesterov momentum."""

    kind: Literal["sgd"] = "sgd"
    learning_rate: float = Field(0.1, gt=0, le=100)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0005, ge=0, le=10)


class ConstantSchedule(_Part):
    """The peak learning rate throughout."""

    kind: Literal["constant"] = "constant"


class CosineSchedule(_Part):
    """A linear rise, then half a cosine that would reach zero on the step after the last."""

    kind: Literal["cosine"] = "cosine"
    warmup_fraction: float = Field(0.05, ge=0, lt=1)


class Epochs(_Part):
    """A length in passes over the training rows."""

    kind: Literal["epochs"] = "epochs"
    count: int = Field(30, ge=1, le=1_000_000)


class Steps(_Part):
    """A length in optimizer steps."""

    kind: Literal["steps"] = "steps"
    count: int = Field(ge=1, le=1_000_000_000)


class Evaluation(_Part):
    """How and how often held-out rows are evaluated."""

    holdout_fraction: float = Field(0.2, gt=0, le=0.9)
    every_epochs: int = Field(1, ge=1)
    metric: str = ""
    """Empty: the first of the trainer's own list."""


class EarlyStopping(_Part):
    """Ends the training when evaluation no longer improves."""

    patience: int = Field(ge=1)
    min_delta: float = Field(0.0, ge=0)


class CheckpointPolicy(_Part):
    """When checkpoints are taken besides after each evaluation."""

    period_seconds: float = Field(30.0, ge=1)


class Device(StrEnum):
    """The kind of device to train on; AUTO is a GPU where there is one."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


class Recipe(_Part):
    """How to train, whatever is trained."""

    length: Annotated[Epochs | Steps, Field(discriminator="kind")] = Epochs()
    batch_size: int = Field(64, ge=1, le=65_536)
    optimizer: Annotated[AdamW | Sgd, Field(discriminator="kind")] = AdamW()
    schedule: Annotated[ConstantSchedule | CosineSchedule, Field(discriminator="kind")] = CosineSchedule()
    precision: Literal[Precision.AUTO, Precision.FP32, Precision.BF16, Precision.FP16] = Precision.AUTO
    seed: int = Field(ge=0, lt=2**63)
    """Drives initial weights, the split, the order of rows and augmentation."""
    evaluation: Evaluation = Evaluation()
    early_stopping: EarlyStopping | None = None
    checkpoints: CheckpointPolicy = CheckpointPolicy()
    device: Device = Device.AUTO
    cpu_threads: int | None = Field(None, ge=1, le=1024)
    """None: as many as the machine has cores."""
