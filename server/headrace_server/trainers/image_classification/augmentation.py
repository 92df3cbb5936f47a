"""Changes batches of images at random, as tensor operations on whatever device they lie."""

import torch
from torch import Tensor

from headrace_server.trainers.image_classification.parameters import Augmentation


def augment(images: Tensor, what: Augmentation, generator: torch.Generator, fill: Tensor) -> Tensor:
    """Mirror, shift and hide, each of the images [B, C, H, W] by its own chance.

    Shifting repeats the border.  Hidden squares lie anywhere, also partly outside, and are filled with `fill` [C], in
    the units of the images.
    """
    batch, _, height, width = images.shape
    device = images.device
    rows = torch.arange(height, device=device).expand(batch, height)  # which row and column each pixel comes from
    columns = torch.arange(width, device=device).expand(batch, width)
    if what.shift_pixels:
        reach = what.shift_pixels
        shifts = torch.randint(-reach, reach + 1, (2, batch, 1), generator=generator, device=device)
        rows = (rows + shifts[0]).clamp(0, height - 1)
        columns = (columns + shifts[1]).clamp(0, width - 1)
    if what.flip:
        is_mirrored = torch.rand((batch, 1), generator=generator, device=device) < 0.5
        columns = torch.where(is_mirrored, width - 1 - columns, columns)
    if what.shift_pixels or what.flip:
        which = torch.arange(batch, device=device)[:, None, None]
        # Indices on both sides of a slice put the indexed axes first: [B, H, W, C].
        images = images[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if what.cutout_pixels:
        hidden = _squares(batch, height, width, what.cutout_pixels, generator, device)
        images = torch.where(hidden, fill.to(images.dtype)[:, None, None], images)
    return images


def _squares(
    batch: int, height: int, width: int, side: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Which pixels are hidden: [B, 1, H, W]."""
    tops = torch.randint(0, height, (batch, 1, 1, 1), generator=generator, device=device) - side // 2
    lefts = torch.randint(0, width, (batch, 1, 1, 1), generator=generator, device=device) - side // 2
    rows = torch.arange(height, device=device)[:, None]
    columns = torch.arange(width, device=device)[None, :]
    return (rows >= tops) & (rows < tops + side) & (columns >= lefts) & (columns < lefts + side)
