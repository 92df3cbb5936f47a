"""Batch normalisation over the rows of all ranks, as if one rank had them all (Ioffe and Szegedy, 2015).

Torch has a layer for this, on GPUs only, which counts every row that a rank computes.  Ours runs wherever ranks meet,
and leaves out rows that a rank computes only to keep the others company (`micro_batches.py`): steps of many ranks stay
those of one, also where parts are uneven.  One meeting of the ranks forward, one backward.

    B batch, C channel; M the sum of squared distances from the mean
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from headrace_server.trainers.ranks import World


class Attendance:
    """What the rows that are being computed are to the statistics."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.counts = True
        """Whether they belong to the step, or only keep the other ranks company."""
        self.is_alone = False
        """Whether nobody else computes anything now."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Statistics are those of this rank's rows in this context, which other ranks need not enter."""
        self.is_alone = True
        try:
            yield
        finally:
            self.is_alone = False


class SharedBatchNorm(_BatchNorm):
    """A layer of batch normalisation that takes the place of another, with its parameters and buffers."""

    def __init__(self, other: _BatchNorm, attendance: Attendance) -> None:
        super().__init__(other.num_features, other.eps, other.momentum, other.affine, other.track_running_stats)
        self.weight, self.bias = other.weight, other.bias
        self.running_mean, self.running_var = other.running_mean, other.running_var
        self.num_batches_tracked = other.num_batches_tracked
        self.training = other.training
        self._attendance = attendance

    def forward(self, rows: Tensor) -> Tensor:
        """[B, C, …], normalised."""
        if not self.training or self._attendance.is_alone:
            return super().forward(rows)
        outputs: Tensor = self._together(rows)
        return outputs

    def _check_input_dim(self, rows: Tensor) -> None:
        """Take any number of axes: the network was made for its rows."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # ranks meet in it
    def _together(self, rows: Tensor) -> Tensor:
        outputs: Tensor
        outputs, mean, variance, count = _Normalise.apply(  # type: ignore[no-untyped-call]
            rows, self.weight, self.bias, self.eps, self._attendance
        )
        self._follow(mean, variance, count)
        return outputs

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics, which take the variance without bias."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share: float | Tensor = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.add_((mean - self.running_mean) * share)
        self.running_var.add_((variance * (count / (count - 1).clamp(min=1)) - self.running_var) * share)


class _Normalise(torch.autograd.Function):
    """(rows, weight, bias, eps, attendance) to the normalised rows, and the mean, variance and count behind them."""

    @staticmethod
    def forward(
        context: Any, rows: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, attendance: Attendance
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance, count = _statistics(rows, attendance)
        scale = (variance + eps).rsqrt()
        context.save_for_backward(rows, weight, mean, scale, count)
        context.attendance, context.counts = attendance, attendance.counts
        context.has_bias = bias is not None
        # In evaluation, torch's kernel normalises by statistics that are given: the same arithmetic.
        outputs = functional.batch_norm(rows, mean, variance, weight, bias, training=False, eps=eps)
        context.mark_non_differentiable(mean, variance, count)
        return outputs, mean, variance, count

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        rows, weight, mean, scale, count = context.saved_tensors
        gradient = gradients[0].float()
        axes = _others(rows)
        centred = (rows.float() - _wide(mean, rows)) * _wide(scale, rows)
        of_bias, of_weight = gradient.sum(axes), (gradient * centred).sum(axes)
        sums = torch.cat([of_bias, of_weight])
        shared = context.attendance.world.sum(sums.clone()) / count
        of_rows = gradient
        if context.counts:
            by_mean, by_scale = shared.chunk(2)
            of_rows = gradient - _wide(by_mean, rows) - centred * _wide(by_scale, rows)
        factor = scale if weight is None else scale * weight
        return (
            (of_rows * _wide(factor, rows)).to(rows.dtype),
            None if weight is None else of_weight,
            of_bias if context.has_bias else None,
            None,
            None,
        )


def share_statistics(network: nn.Module, world: World) -> Attendance | None:
    """Have all layers of batch normalisation inside `network` share their statistics, in place; None if it has none."""
    attendance = Attendance(world)
    found = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, _BatchNorm)
    ]
    for parent, name, child in found:
        setattr(parent, name, SharedBatchNorm(child, attendance))
    return attendance if found else None


def _statistics(rows: Tensor, attendance: Attendance) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C], variance [C] and count [] over the rows of all ranks.

    Each rank's own mean and M are joined (Chan et al., 1979): sums of squares would lose digits.
    """
    world, channels = attendance.world, rows.shape[1]
    own = rows.new_zeros((world.place.size, 2 * channels + 1), dtype=torch.float32)
    if attendance.counts:
        variance, mean = torch.var_mean(rows.float(), _others(rows), correction=0)
        num_rows = rows.numel() // channels
        mine = own[world.place.rank]
        mine[:channels], mine[channels:-1] = mean, variance * num_rows
        mine[-1] = num_rows
    each = world.sum(own)
    means, squares, counts = each[:, :channels], each[:, channels:-1], each[:, -1:]
    count = counts.sum()
    mean = (means * counts).sum(0) / count
    variance = (squares + counts * (means - mean).square()).sum(0) / count
    return mean, variance, count


def _others(rows: Tensor) -> list[int]:
    """All axes but that of the channels."""
    return [axis for axis in range(rows.dim()) if axis != 1]


def _wide(channels: Tensor, rows: Tensor) -> Tensor:
    """[C] to the rank of `rows`."""
    return channels.view(1, -1, *[1] * (rows.dim() - 2))
