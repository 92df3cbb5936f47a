"""Turns gradients into steps: AdamW, SGD with Nesterov momentum, and the scaling that FP16 needs.

These are the fused kernels of torch, called directly.  `torch.optim` would call the same ones (a test compares the
results bit by bit), but it imports the compiler first, which delays the first step by seconds, and spends more time in
Python on each step than a small network spends in arithmetic.  Here the state is plain tensors, ready to be saved.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias, assert_never

import torch
from torch import Tensor, nn

from headrace_server.trainers.recipe import AdamW, Sgd

Local: TypeAlias = Callable[[Tensor], Tensor]

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


class Optimizer(Protocol):
    """Moves parameters along their gradients, in place."""

    def step(self, learning_rate: float | Tensor, found_inf: Tensor | None = None) -> None:
        """Do one step and drop the gradients.

        `learning_rate` may be a float32 scalar on the parameters' device, which the host does not read.  `found_inf` is
        one as well: where it is 1, nothing is changed.
        """
        ...

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The tensors that a later process needs to go on; `copy_` into them to restore."""
        ...


def make_optimizer(recipe: AdamW | Sgd, network: nn.Module, local: Local | None = None) -> Optimizer:
    """An optimizer for all parameters of `network` that are trained, wherever they lie now.

    `local` gives the part of a parameter, or of its gradient, that this process holds, where that is not all of it.
    """
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    match recipe:
        case AdamW():
            return _FusedAdamW(Trained(trained, local), recipe)
        case Sgd():
            return _FusedSgd(Trained(trained, local), recipe)
        case _:
            assert_never(recipe)


class Trained:
    """The parameters that are trained: their names, the part of each that this process holds, and their gradients."""

    def __init__(self, parameters: Mapping[str, Tensor], local: Local | None) -> None:
        self.names = tuple(parameters)
        self._owners = list(parameters.values())
        self._local = local
        self.tensors = self._owners if local is None else [local(owner.detach()) for owner in self._owners]

    def take_gradients(self, lists: list[list[Tensor]]) -> tuple[list[Tensor], list[list[Tensor]]]:
        """The gradients of those that have one, taken away from them, and the matching entries of `lists`.

        Returns `lists` themselves when every parameter has a gradient.
        """
        gradients: list[Tensor] = []
        present: list[int] = []
        for index, owner in enumerate(self._owners):
            if owner.grad is not None:
                gradients.append(owner.grad)
                present.append(index)
                owner.grad = None
        if self._local is not None:
            gradients = [self._local(gradient) for gradient in gradients]
        if len(present) < len(self._owners):
            lists = [[entries[index] for index in present] for entries in lists]
        return gradients, lists


class _FusedAdamW:
    """Loshchilov and Hutter, 2019."""

    def __init__(self, trained: Trained, recipe: AdamW) -> None:
        self._weight_decay = recipe.weight_decay
        self._trained, self._parameters = trained, trained.tensors
        self._means = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self._parameters]
        # One count for each parameter, because a parameter that got no gradient does not take part in a step; but all
        # of them in one piece of memory, because they nearly always grow together.
        device = self._parameters[0].device if self._parameters else None
        self._counts = torch.zeros(len(self._parameters), device=device)
        self._steps = list(self._counts.unbind())

    @property
    def state(self) -> Mapping[str, Tensor]:
        groups = {"exp_avg": self._means, "exp_avg_sq": self._squares, "step": self._steps}
        return _named_state(self._trained.names, groups)

    @torch.no_grad()
    def step(self, learning_rate: float | Tensor, found_inf: Tensor | None = None) -> None:
        lists = [self._parameters, self._means, self._squares, self._steps]
        gradients, (parameters, means, squares, steps) = self._trained.take_gradients(lists)
        if not gradients:
            return
        growth = 1.0 if found_inf is None else 1.0 - found_inf
        for count in [self._counts] if steps is self._steps else steps:
            count.add_(growth)
        torch._fused_adamw_(
            parameters, gradients, means, squares, [], steps,
            lr=learning_rate, beta1=_BETAS[0], beta2=_BETAS[1], weight_decay=self._weight_decay, eps=_EPSILON,
            amsgrad=False, maximize=False, grad_scale=None, found_inf=found_inf,
        )  # fmt: skip


class _FusedSgd:
    """Stochastic gradient descent with Nesterov momentum (Sutskever et al., 2013)."""

    def __init__(self, trained: Trained, recipe: Sgd) -> None:
        self._momentum, self._weight_decay = recipe.momentum, recipe.weight_decay
        self._trained, self._parameters = trained, trained.tensors
        self._velocities = [torch.zeros_like(parameter) for parameter in self._parameters] if recipe.momentum else []

    @property
    def state(self) -> Mapping[str, Tensor]:
        return _named_state(self._trained.names, {"momentum": self._velocities})

    @torch.no_grad()
    def step(self, learning_rate: float | Tensor, found_inf: Tensor | None = None) -> None:
        lists = [self._parameters, self._velocities] if self._velocities else [self._parameters]
        gradients, (parameters, *velocities) = self._trained.take_gradients(lists)
        if not gradients:
            return
        torch._fused_sgd_(
            parameters, gradients, velocities[0] if velocities else [],
            weight_decay=self._weight_decay, momentum=self._momentum, lr=learning_rate, dampening=0.0,
            # A first step stores the gradient itself; from velocities of zero that is what any step does.
            nesterov=self._momentum > 0, maximize=False, is_first_step=False, grad_scale=None, found_inf=found_inf,
        )  # fmt: skip


class LossScale:
    """Keeps small FP16 gradients from vanishing: the loss is scaled up, gradients down again.

    Micikevicius et al., 2018, section 3.2.
    Never waits for the device: whether a gradient overflowed stays in a tensor, which the optimizer looks at.
    """

    def __init__(self, device: torch.device) -> None:
        self._scale = torch.full((), 65536.0, device=device)
        self._growth = torch.zeros((), dtype=torch.int32, device=device)
        self._found_inf = torch.zeros((), device=device)

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The tensors that a later process needs to go on."""
        return {"loss_scale": self._scale, "loss_scale_growth": self._growth}

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call `backward` on."""
        return loss * self._scale

    @torch.no_grad()
    def unscale(self, gradients: Sequence[Tensor], agree: Local | None = None) -> Tensor:
        """Scale the gradients down in place, adapt the scale, and return whether any gradient overflowed (0 or 1).

        `agree` makes that the largest value of all processes, where each holds gradients of its own.
        """
        self._found_inf.zero_()
        if gradients:
            inverse = self._scale.double().reciprocal().float()
            torch._amp_foreach_non_finite_check_and_unscale_(list(gradients), self._found_inf, inverse)
        if agree is not None:
            agree(self._found_inf)
        torch._amp_update_scale_(self._scale, self._growth, self._found_inf, 2.0, 0.5, 2000)
        return self._found_inf


def _named_state(names: Sequence[str], groups: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    return {
        f"optimizer.{group}.{name}": tensor
        for group, tensors in groups.items()
        for name, tensor in zip(names, tensors, strict=bool(tensors))
    }
