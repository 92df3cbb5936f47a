"""The network over images, and the program that serves it."""

import torch
from torch import Tensor, nn
from torch.nn import functional

_SMALLEST = 4
_LARGEST = 64


class ImageNetwork(nn.Module):
    """A pre-activation residual network (He et al., 2016), down to a map of 4 to 7 pixels a side.

    Images larger than 64 pixels are first halved by strided convolutions until they are not; then each stage has
    `blocks_per_stage` blocks, and each stage after the first halves the map and doubles the channels.
    Takes raw pixels in the units of the data, which it standardises: `mean` and `deviation` have one entry a channel.
    """

    mean: Tensor
    inverse: Tensor

    def __init__(
        self, image_size: int, width: int, blocks_per_stage: int, num_classes: int, mean: Tensor, deviation: Tensor
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("inverse", torch.where(deviation > 0, 1 / deviation, 0)[:, None, None])
        layers: list[nn.Module] = [_convolution(len(mean), width)]
        size = image_size
        while size > _LARGEST:
            layers += [nn.BatchNorm2d(width), nn.ReLU(), _convolution(width, width, stride=2)]
            size = -(-size // 2)
        channels = width
        for stage in range(num_stages(image_size)):
            wider = channels if stage == 0 else 2 * channels
            for block in range(blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(_Block(channels, wider, stride))
                channels = wider
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU())
        self.head = nn.Linear(channels, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [B, C, size, size] to class scores before softmax [B, classes]."""
        maps = self.layers((pixels.float() - self.mean) * self.inverse)
        scores: Tensor = self.head(maps.mean(dim=(2, 3)))
        return scores


class _Block(nn.Module):
    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.residual = nn.Sequential(
            _convolution(channels, wider, stride), nn.BatchNorm2d(wider), nn.ReLU(), _convolution(wider, wider)
        )
        self.shortcut: nn.Module | None = None
        if stride > 1 or wider != channels:
            self.shortcut = nn.Conv2d(channels, wider, kernel_size=1, stride=stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        ready = self.before(maps)
        shortcut = maps if self.shortcut is None else self.shortcut(ready)
        summed: Tensor = shortcut + self.residual(ready)
        return summed


class ImageProgram(nn.Module):
    """Takes raw images as the data set has them: [B, H, W] or [B, H, W, C]."""

    def __init__(self, network: ImageNetwork, image_size: int) -> None:
        super().__init__()
        self.network = network
        self._image_size = image_size

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Class probabilities [B, classes] and the most probable class [B]."""
        scores = torch.softmax(self.network(resize(channels_first(images), self._image_size)), dim=1)
        return scores, scores.argmax(dim=1)


def num_stages(image_size: int) -> int:
    """How many sizes the map goes through: 64, 32, 16, 8, 4 at most."""
    size = image_size
    while size > _LARGEST:
        size = -(-size // 2)
    stages = 1
    while size >= 2 * _SMALLEST:
        size, stages = -(-size // 2), stages + 1
    return stages


def channels_first(images: Tensor) -> Tensor:
    """[B, H, W] or [B, H, W, C] to [B, C, H, W]."""
    return images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)


def resize(pixels: Tensor, size: int) -> Tensor:
    """Scale pixels [B, C, H, W] to `size` by `size`; the same tensor where nothing is to be scaled.

    Training and serving both use this.  Pixels are averaged by a whole factor as long as there are enough of them, then
    interpolated.  Returns float32 if it scales.
    """
    height, width = pixels.shape[2:]
    if (height, width) == (size, size):
        return pixels
    averaged = functional.avg_pool2d(pixels.float(), (max(1, height // size), max(1, width // size)))
    return functional.interpolate(averaged, (size, size), mode="bilinear", align_corners=False)


def _convolution(channels: int, wider: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, wider, kernel_size=3, stride=stride, padding=1, bias=False)
