"""The number formats that arithmetic runs in, and how far a shorter one may lead from 32-bit floats."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Precision(StrEnum):
    """A number format that arithmetic runs in; AUTO leaves the choice to whoever runs it."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"
    """Weights and activations; for predictions only."""


class Tolerances(BaseModel):
    """How far answers may be from those of the 32-bit program, on the rows that a plan is judged with."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_relative_error: float = Field(0.05, ge=0)
    """The largest difference of any element, relative to the largest element of that output."""
    min_cosine: float = Field(0.999, ge=-1, le=1)
    """The smallest cosine between the two answers to any row."""
    min_agreement: float = Field(0.99, ge=0, le=1)
    """The smallest share of rows whose largest element is in the same place; for outputs that score classes."""
    max_metric_loss: float = Field(0.01, ge=0)
    """The largest loss of the measure that training recorded, in its own unit."""


class PrecisionPolicy(BaseModel):
    """In which number format a model may run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Precision | None = None
    """None: the server's setting."""
    tolerances: Tolerances = Tolerances()
