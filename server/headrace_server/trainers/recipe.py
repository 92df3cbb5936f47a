"""How to train, whatever is trained: length, batches, optimizer, schedule, evaluation.  Knows no torch."""

from enum import StrEnum
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

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
    """A linear rise, then the peak learning rate to the end."""

    kind: Literal["constant"] = "constant"
    warmup_fraction: float = Field(0.0, ge=0, lt=1)


class CosineSchedule(_Part):
    """A linear rise, then half a cosine that would reach its final share of the peak on the step after the last."""

    kind: Literal["cosine"] = "cosine"
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    final_fraction: float = Field(0.0, ge=0, le=1)


class LinearSchedule(_Part):
    """A linear rise, then a linear fall that would reach its final share of the peak on the step after the last."""

    kind: Literal["linear"] = "linear"
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    final_fraction: float = Field(0.0, ge=0, le=1)


class StepDecaySchedule(_Part):
    """A linear rise, then equal parts of constant rates, each `factor` times the one before."""

    kind: Literal["step_decay"] = "step_decay"
    warmup_fraction: float = Field(0.0, ge=0, lt=1)
    factor: float = Field(0.1, gt=0, lt=1)
    num_drops: int = Field(2, ge=1, le=1000)


Schedule: TypeAlias = ConstantSchedule | CosineSchedule | LinearSchedule | StepDecaySchedule


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
    """When checkpoints are taken besides after each evaluation, and which are kept."""

    period_seconds: float = Field(30.0, ge=1)
    keep_last: int = Field(1, ge=1, le=1000)
    """How many of the newest."""
    keep_best: int = Field(1, ge=1, le=1000)
    """How many of those that were the best when they were evaluated."""


class Sharing(StrEnum):
    """Who goes first on a device that models are served from."""

    EXCLUSIVE = "exclusive"
    """Nobody."""
    YIELD = "yield"
    """Predictions."""


class Placement(_Part):
    """How a training shares its device with models that are served from it."""

    mode: Sharing = Sharing.EXCLUSIVE
    max_block_seconds: float = Field(0.02, ge=0.001, le=10)
    """How long a prediction may have to wait for one micro-batch."""
    min_share: float = Field(0.1, ge=0.01, le=1)
    """The share of its time that the training goes on however busy the models are."""


class MovingAverage(_Part):
    """An exponential moving average of the weights, which is evaluated and exported in their place."""

    decay: float = Field(0.999, gt=0, lt=1)


class OnNonFinite(StrEnum):
    """What happens to a step whose loss or gradient is not finite."""

    STOP = "stop"
    """The training fails, with the evidence."""
    SKIP = "skip"
    """The step is left out."""
    LOWER_RATE = "lower_rate"
    """The step is left out, and the learning rate of all later ones is lowered."""


class Numerics(_Part):
    """What to do about numbers that are not finite."""

    on_non_finite: OnNonFinite = OnNonFinite.STOP
    rate_factor: float = Field(0.5, gt=0, lt=1)
    """What LOWER_RATE multiplies the rate by, each time."""
    max_skipped_in_a_row: int = Field(20, ge=1, le=1_000_000)
    """After so many steps that were left out one after another, the training fails all the same."""


class Compilation(StrEnum):
    """Whether the network is compiled before it is trained; AUTO where that is predicted to save time."""

    AUTO = "auto"
    NEVER = "never"
    ALWAYS = "always"


class Graphs(StrEnum):
    """Whether micro-batches are recorded as CUDA graphs; AUTO where that turns out to save time."""

    AUTO = "auto"
    NEVER = "never"
    ALWAYS = "always"


class Strategy(StrEnum):
    """What each of several ranks holds."""

    DATA_PARALLEL = "data_parallel"
    """The whole network."""
    FULLY_SHARDED = "fully_sharded"
    """A part of the weights, of their gradients and of the optimizer's state."""


class Device(StrEnum):
    """The kind of device to train on; AUTO is a GPU where there is one."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


class Recipe(_Part):
    """How to train, whatever is trained."""

    length: Annotated[Epochs | Steps, Field(discriminator="kind")] = Epochs()
    batch_size: int = Field(64, ge=1, le=65_536)
    """Rows a step, of all ranks and all micro-batches together."""
    micro_batches: int = Field(1, ge=1, le=65_536)
    """How many parts each rank's rows of a step are computed in, one after another; their gradients are added."""
    split_to_fit: bool = False
    """Whether to compute in as many micro-batches as the memory demands, if those are more."""
    optimizer: Annotated[AdamW | Sgd, Field(discriminator="kind")] = AdamW()
    schedule: Annotated[Schedule, Field(discriminator="kind")] = CosineSchedule()
    precision: Literal[Precision.AUTO, Precision.FP32, Precision.BF16, Precision.FP16] = Precision.AUTO
    seed: int = Field(ge=0, lt=2**63)
    """Drives initial weights, the split, the order of rows and augmentation."""
    evaluation: Evaluation = Evaluation()
    early_stopping: EarlyStopping | None = None
    checkpoints: CheckpointPolicy = CheckpointPolicy()
    placement: Placement = Placement()
    device: Device = Device.AUTO
    cpu_threads: int | None = Field(None, ge=1, le=1024)
    """None: as many as the machine has cores."""
    max_gradient_norm: float | None = Field(None, gt=0)
    """Gradients are scaled down together to this 2-norm; None: never."""
    moving_average: MovingAverage | None = None
    numerics: Numerics = Numerics()
    deterministic: bool = False
    """Only algorithms that give the same bits each time, on the same machine with the same number of threads."""
    compilation: Compilation = Compilation.AUTO
    channels_last: bool | None = None
    """Whether images lie in memory pixel by pixel, not channel by channel; None: on a GPU."""
    strategy: Strategy = Strategy.DATA_PARALLEL
    synchronize_batch_norm: bool = True
    """Whether batch normalisation takes its statistics over the rows of all ranks, as one rank would."""
    graphs: Graphs = Graphs.AUTO

    @field_validator("micro_batches")
    @classmethod
    def _check_micro_batches(cls, count: int, info: ValidationInfo) -> int:
        if count > info.data.get("batch_size", count):
            raise ValueError(f"must be at most the batch size of {info.data['batch_size']}")
        return count
