"""What every side of a comparison of training loops trains: the same networks over the same rows.  Knows only torch.

Peers import it in environments of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """A recipe: cross-entropy, AdamW at its defaults with the fused kernel, a constant rate, one thread."""

    name: str
    num_rows: int
    batch_size: int
    row: tuple[int, ...]
    network: Callable[[], nn.Module]

    def rows(self, seed: int = 1) -> tuple[Tensor, Tensor]:
        """Random inputs, and the class of each of them, of ten."""
        generator = torch.Generator().manual_seed(seed)
        targets = torch.randint(0, 10, (self.num_rows,), generator=generator)
        return torch.randn((self.num_rows, *self.row), generator=generator), targets


def perceptron() -> nn.Module:
    """64-256-256-10."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


class ResNet18(nn.Module):
    """The residual network with 18 layers (He et al., 2015) for images of 32 pixels: 11.2 million weights."""

    def __init__(self) -> None:
        super().__init__()
        stages = [(64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)]
        layers: list[nn.Module] = [*_convolution(3, 64), nn.ReLU()]
        channels = 64
        for wider, stride in stages:
            layers.append(_Block(channels, wider, stride))
            channels = wider
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, 32, 32] to class scores."""
        scores: Tensor = self.head(self.layers(images).mean(dim=(2, 3)))
        return scores


class _Block(nn.Module):
    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(*_convolution(channels, wider, stride), nn.ReLU(), *_convolution(wider, wider))
        is_same = stride == 1 and channels == wider
        self.shortcut: nn.Module = (
            nn.Identity() if is_same else nn.Sequential(*_convolution(channels, wider, stride, 1))
        )

    def forward(self, maps: Tensor) -> Tensor:
        """One residual step."""
        return functional.relu(self.shortcut(maps) + self.residual(maps))


def _convolution(channels: int, wider: int, stride: int = 1, size: int = 3) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, wider, size, stride, size // 2, bias=False), nn.BatchNorm2d(wider)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("mlp", 64_000, 64, (64,), perceptron),
        Shape("resnet18", 512, 16, (3, 32, 32), ResNet18),
    )
}
