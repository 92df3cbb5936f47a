"""Keeps an exponential moving average of a network's weights (Polyak and Juditsky, 1992; Tarvainen and Valpola, 2017).

Early in a training, where the first weights say nothing yet, the average follows more closely: update number t keeps
the share min(decay, (1 + t) / (10 + t)).  Buffers such as running statistics are averages already and are not averaged.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

PREFIX = "average."


class MovingAverage:
    """The average of all floating-point parameters of `network`, which lies where they lie."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self._decay = decay
        chosen = {name: parameter for name, parameter in parameters.items() if parameter.is_floating_point()}
        self._names = tuple(chosen)
        self._weights: list[Tensor] = [parameter.detach() for parameter in chosen.values()]
        self._averages = [weight.clone() for weight in self._weights]

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The averages; `copy_` into them to restore."""
        return {f"{PREFIX}{name}": average for name, average in zip(self._names, self._averages, strict=True)}

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew with the weights as they are now."""
        torch._foreach_copy_(self._averages, self._weights)

    @torch.no_grad()
    def update(self, number: int, found_inf: Tensor | None = None) -> None:
        """Take the weights after update `number`, counted from 0, into account.

        Where `found_inf`, a scalar on their device, is 1, nothing is changed: there was no update.
        """
        share = 1 - min(self._decay, (1 + number) / (10 + number))
        if found_inf is None:
            torch._foreach_lerp_(self._averages, self._weights, share)
            return
        differences = torch._foreach_sub(self._weights, self._averages)  # noqa: SLF001 - has no public name
        torch._foreach_mul_(differences, share * (1 - found_inf))
        torch._foreach_add_(self._averages, differences)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the network the averages for a while."""
        with torch.no_grad():
            kept = [weight.clone() for weight in self._weights]
            torch._foreach_copy_(self._weights, self._averages)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._weights, kept)


def trained_parameters(network: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
