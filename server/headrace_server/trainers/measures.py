"""Measures that families share.  All of them are computed where the answers lie, and none waits for the device."""

from types import MappingProxyType

from torch import Tensor
from torch.nn import functional

from headrace_server.trainers.task import Direction

CLASSIFICATION = MappingProxyType({"accuracy": Direction.UP, "loss": Direction.DOWN})
REGRESSION = MappingProxyType(
    {"rmse": Direction.DOWN, "mae": Direction.DOWN, "r2": Direction.UP, "loss": Direction.DOWN}
)


def measure_classes(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """`outputs` [B, C] before softmax, `targets` [B] class numbers."""
    return {
        "accuracy": (outputs.argmax(dim=1) == targets).float().mean(),
        "loss": functional.cross_entropy(outputs, targets),
    }


def measure_numbers(outputs: Tensor, targets: Tensor, unit: Tensor) -> dict[str, Tensor]:
    """`outputs` and `targets` [B, 1], standardised; `unit` is what 1 stands for in the target's own unit.

    r2 is the share of the variance that is explained; where there is none to explain, 1 for perfect answers, else 0.
    """
    error = outputs - targets
    squared = error.square()
    unexplained = squared.sum()
    variation = (targets - targets.mean()).square().sum()
    perfect = (unexplained == 0).float()
    r2 = (1 - unexplained / variation.clamp(min=1e-30)).where(variation > 0, perfect)
    scale = unit.to(outputs.device).squeeze()
    return {
        "rmse": squared.mean().sqrt() * scale,
        "mae": error.abs().mean() * scale,
        "r2": r2,
        "loss": squared.mean(),
    }
