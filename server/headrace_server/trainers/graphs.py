"""Records the forward and the backward pass of a micro-batch as CUDA graphs, which are then replayed as they are.

A small network spends more time in launching kernels than the device spends in running them; a graph launches all of
them at once.  It repeats the very kernels, on the same memory: rows are copied into it first, and what comes out is
copied before the next replay overwrites it.  Only a network that does the same for every batch can be recorded.

Recording leaves nothing behind: running statistics and generators are put back.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

_WARM_UP = 3  # passes outside of the graph, in which libraries choose algorithms and take their memory
_ERRORS = "thread_local"  # threads that fetch batches go on meanwhile

Loss = Callable[[Tensor, Tensor], Tensor]


class Recordable(Protocol):
    """A network in training, as far as its passes go."""

    network: "nn.Module"

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """The answer to a micro-batch."""
        ...

    def backward(self, loss: Tensor, share: float) -> None:
        """Add the gradients of a micro-batch that holds this share of its step's rows."""
        ...


class Recording:
    """The passes of micro-batches of one shape, which hold the same share of their steps.

    Made while no parameter has a gradient.  Raises RuntimeError, which says why, where they cannot be recorded.
    """

    def __init__(
        self, learner: Recordable, loss: Loss, inputs: tuple[Tensor, ...], targets: Tensor, share: float
    ) -> None:
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        self._targets = targets.clone()
        self._is_whole_step = share == 1
        self._parameters = [one for one in learner.network.parameters() if one.requires_grad]
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with _unchanged(learner.network, targets.device):
            self._warm_up(learner, loss, share)
            self._record(learner, loss, share)

    def replay(
        self, inputs: tuple[Tensor, ...], targets: Tensor, forward_done: Callable[[], None] = lambda: None
    ) -> tuple[Tensor, Tensor]:
        """Outputs and mean loss of these rows, whose gradients are added to those that the parameters have.

        `forward_done` is called between the two passes.
        """
        for static, tensor in zip((*self._inputs, self._targets), (*inputs, targets), strict=True):
            static.copy_(tensor)
        self._forward.replay()
        outputs, loss = self._outputs.clone(), self._loss.clone()
        forward_done()
        self._backward.replay()
        self._add_gradients()
        return outputs, loss

    def _warm_up(self, learner: Recordable, loss: Loss, share: float) -> None:
        """On a stream of its own, as recording is."""
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                learner.backward(loss(learner.forward(self._inputs), self._targets), share)
                self._take_gradients()
        current.wait_stream(stream)

    def _record(self, learner: Recordable, loss: Loss, share: float) -> None:
        pool = torch.cuda.graph_pool_handle()  # of both, since the backward pass reads what the forward pass keeps
        with torch.cuda.graph(self._forward, pool=pool, capture_error_mode=_ERRORS):
            outputs = learner.forward(self._inputs)
            mean = loss(outputs, self._targets)
        with torch.cuda.graph(self._backward, pool=pool, capture_error_mode=_ERRORS):
            learner.backward(mean, share)
        self._outputs, self._loss = outputs.detach(), mean.detach()
        # Each replay writes into the same memory; None for a parameter that the network does not use.
        self._gradients = self._take_gradients()

    def _take_gradients(self) -> list[Tensor | None]:
        gradients = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        return gradients

    @torch.no_grad()
    def _add_gradients(self) -> None:
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            if gradient is None:
                continue
            if parameter.grad is not None:
                parameter.grad.add_(gradient)
            else:
                # The optimizer is done with it before the next replay; the next micro-batch would not be.
                parameter.grad = gradient if self._is_whole_step else gradient.clone()


@contextmanager
def _unchanged(network: "nn.Module", device: torch.device) -> "Iterator[None]":
    """Put back whatever passes change, and leave no gradients, also where a pass fails."""
    buffers: Sequence[tuple[Tensor, Tensor]] = [(buffer, buffer.clone()) for buffer in network.buffers()]
    state = torch.cuda.get_rng_state(device)
    try:
        yield
    finally:
        torch.cuda.synchronize(device)
        network.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        torch.cuda.set_rng_state(state, device)
