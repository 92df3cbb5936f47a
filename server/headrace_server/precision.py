"""The number formats that arithmetic runs in."""

from enum import StrEnum


class Precision(StrEnum):
    """A number format that arithmetic runs in; AUTO leaves the choice to whoever runs it."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
