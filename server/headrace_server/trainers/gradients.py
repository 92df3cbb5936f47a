"""What happens to the gradients of a step between the last backward pass and the optimizer.

    scaled down again (FP16) → measured → clipped → judged: may this step be done?

All of it on the device, none of it waits: the judgement is a tensor that the optimizer looks at.  A network that needs
nothing of this pays nothing for it.

A step that is left out leaves no trace: the weights, the optimizer, the moving average and the buffers that the forward
passes changed (running statistics) are as before.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from headrace_server.trainers.optimizers import LossScale
from headrace_server.trainers.ranks import ALONE, World
from headrace_server.trainers.recipe import Numerics, OnNonFinite

PREFIX = "numerics."


class Gradients:
    """The gradients of one network, or what this rank holds of them.  `parameters` are those that are trained."""

    def __init__(
        self,
        network: nn.Module,
        parameters: Sequence[Tensor],
        device: torch.device,
        *,
        loss_scale: LossScale | None = None,
        max_norm: float | None = None,
        numerics: Numerics | None = None,
        world: World | None = None,
    ) -> None:
        self._world = world or ALONE
        self._parameters, self._loss_scale, self._max_norm = parameters, loss_scale, max_norm
        self._guard = None
        if numerics is not None and numerics.on_non_finite is not OnNonFinite.STOP:
            self._guard = Guard(network, numerics, device)
        self.norm: Tensor | None = None
        """The joint 2-norm of the last step before clipping, as a scalar on the device; None if it was not needed."""

    @property
    def guard(self) -> "Guard | None":
        """What leaves out steps that are not finite; None when the policy is to stop."""
        return self._guard

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The tensors that a later process needs to go on; `copy_` into them to restore."""
        scale = self._loss_scale.state if self._loss_scale else {}
        guard = self._guard.state if self._guard else {}
        return {**scale, **guard}

    def begin(self) -> None:
        """Before the first forward pass of a step."""
        if self._guard is not None:
            self._guard.remember()

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call `backward` on."""
        return loss if self._loss_scale is None else self._loss_scale.scale(loss)

    @torch.no_grad()
    def finish(self, loss: Tensor) -> Tensor | None:
        """After the last backward pass: make the gradients ready for the optimizer.

        `loss` is that of the whole step.  Returns a float32 scalar that is 1 where the step is to be left out, or None
        when it never is.
        """
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        shards = self._world.shards
        if shards:
            gradients = [self._world.local(gradient) for gradient in gradients]
        found_inf = None
        if self._loss_scale is not None:
            found_inf = self._loss_scale.unscale(gradients, self._world.largest if shards else None)
        if self._max_norm is not None or self._guard is not None:
            norm = joint_norm(gradients, loss.device)
            self.norm = self._world.sum(norm.square()).sqrt() if shards else norm
        if self._max_norm is not None:
            assert self.norm is not None
            torch._foreach_mul_(gradients, (self._max_norm / (self.norm + 1e-6)).clamp(max=1.0))
        if self._guard is not None:
            assert self.norm is not None
            found_inf = self._guard.judge(loss, self.norm, found_inf)
        return found_inf


class Guard:
    """Leaves out steps whose loss or gradient is not finite, and counts them.

    An overflow of scaled FP16 gradients with a finite loss is not one of them: the loss scale deals with it.
    """

    def __init__(self, network: nn.Module, numerics: Numerics, device: torch.device) -> None:
        lowers_rate = numerics.on_non_finite is OnNonFinite.LOWER_RATE
        self._factor = numerics.rate_factor if lowers_rate else 1.0
        self.max_in_a_row = numerics.max_skipped_in_a_row
        self._buffers = [buffer for buffer in network.buffers() if buffer.numel()]
        self._remembered = [buffer.clone() for buffer in self._buffers]
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)
        self._skipped, self._in_a_row, self._most_in_a_row = self._counts.unbind()
        self.rate_share = torch.ones((), device=device)
        """What is left of the learning rate after everything that lowered it: a scalar on the device."""

    @property
    def state(self) -> Mapping[str, Tensor]:
        """What a later process needs to go on."""
        remembered = {f"{PREFIX}buffer.{number}": buffer for number, buffer in enumerate(self._remembered)}
        return {f"{PREFIX}counts": self._counts, f"{PREFIX}rate_share": self.rate_share, **remembered}

    def remember(self) -> None:
        """Keep the buffers as they are before the step."""
        if self._buffers:
            torch._foreach_copy_(self._remembered, self._buffers)

    def judge(self, loss: Tensor, norm: Tensor, overflow: Tensor | None) -> Tensor:
        """1 where the step is to be left out, else 0; takes back what its forward passes did to buffers if so.

        `overflow` is 1 where FP16 gradients did not fit, which leaves the step out, but is not counted.
        """
        is_finite = loss.isfinite()
        if overflow is None:
            is_finite = is_finite & norm.isfinite()
        is_bad = ~is_finite
        for buffer, remembered in zip(self._buffers, self._remembered, strict=True):
            buffer.copy_(torch.where(is_bad, remembered, buffer))
        self._skipped.add_(is_bad)
        self._in_a_row.copy_((self._in_a_row + 1) * is_bad)
        torch.maximum(self._most_in_a_row, self._in_a_row, out=self._most_in_a_row)
        if self._factor != 1.0:
            self.rate_share.mul_(torch.where(is_bad, self._factor, 1.0))
        found = is_bad.float()
        return found if overflow is None else torch.maximum(found, overflow)

    def read(self) -> tuple[int, int]:
        """How many steps were left out so far, and how many one after another at most.  Waits for the device."""
        skipped, _, most_in_a_row = self._counts.tolist()
        return skipped, most_in_a_row


def joint_norm(gradients: list[Tensor], device: torch.device) -> Tensor:
    """The 2-norm of all gradients as one vector: a float32 scalar, not waited for."""
    if not gradients:
        return torch.zeros((), device=device)
    norms = torch._foreach_norm(gradients)  # noqa: SLF001 - what torch.nn.utils calls
    joint: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return joint.float()
