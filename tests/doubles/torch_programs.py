"""Small torch.export programs, made on the spot."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Scores(nn.Module):
    """Two inputs, two outputs with names."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        scores = self.layer(x) * mask.any(-1, keepdim=True)
        return {"scores": scores, "best": scores.argmax(-1)}


class Scale(nn.Module):
    """A keyword argument, outputs without names, and an output that is an input."""

    def forward(self, x: Tensor, *, factor: Tensor) -> tuple[Tensor, Tensor]:
        return x * factor.to(x.dtype), factor


def save(
    module: nn.Module,
    args: tuple[Tensor, ...],
    folder: Path,
    keywords: dict[str, Tensor] | None = None,
    dynamic_shapes: Any = None,
) -> Path:
    """Export to `program.pt2`."""
    path = folder / "program.pt2"
    program = torch.export.export(module.eval(), args, keywords, dynamic_shapes=dynamic_shapes)
    torch.export.save(program, path)
    return path
