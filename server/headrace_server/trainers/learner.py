"""All that a training changes: the network, its gradients, the optimizer, the moving average, and the generators.

Everything here that decides the rest of a training is a tensor with a name, so that a checkpoint is a dictionary.
Knows neither rows nor time: `loop.py` says what comes when.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from headrace_server.precision import Precision
from headrace_server.trainers.arithmetic import choose_precision, forward_context, prefers_channels_last
from headrace_server.trainers.checkpoint import copy_to_host
from headrace_server.trainers.failures import TrainingFailure
from headrace_server.trainers.gradients import Gradients
from headrace_server.trainers.moving_average import MovingAverage, trained_parameters
from headrace_server.trainers.optimizers import LossScale, make_optimizer
from headrace_server.trainers.randomness import Use, derive_seed
from headrace_server.trainers.recipe import Recipe

_GRADIENT, _STEP_LOSS = "gradient.", "step_loss"
_AUGMENTATION, _CPU, _CUDA = "random.augmentation", "random.cpu", "random.cuda"


class Learner:
    """One network in training.  It lies on the CPU with its initial weights, and is moved to `device`."""

    def __init__(self, network: nn.Module, recipe: Recipe, device: torch.device) -> None:
        self._recipe, self._device = recipe, device
        self._is_channels_last = prefers_channels_last(recipe.channels_last, device)
        self.network = network.to(device)
        if self._is_channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stubs lack it
        self._parameters = trained_parameters(self.network)
        self._optimizer = make_optimizer(recipe.optimizer, self.network)
        precision = choose_precision(recipe.precision, device)
        self._context = forward_context(precision, device)
        self.gradients = Gradients(
            self.network,
            list(self._parameters.values()),
            device,
            loss_scale=LossScale(device) if precision is Precision.FP16 else None,
            max_norm=recipe.max_gradient_norm,
            numerics=recipe.numerics,
        )
        average = recipe.moving_average
        self._average = None if average is None else MovingAverage(self._parameters, average.decay)
        self.augmentation = torch.Generator(device).manual_seed(derive_seed(recipe.seed, Use.AUGMENTATION))
        self._augmentation_before = self.augmentation.get_state()
        self._restored: Mapping[str, Tensor] | None = None

    # One step.

    def begin(self) -> None:
        """Before the first step: set torch's own generators, which dropout uses; they belong to the whole process."""
        self.network.train()
        if self._restored is None:
            torch.manual_seed(derive_seed(self._recipe.seed, Use.TRAINING))
            return
        self._augmentation_before = self._restored[_AUGMENTATION]
        self.augmentation.set_state(self._augmentation_before)
        torch.set_rng_state(self._restored[_CPU])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(self._restored[_CUDA], self._device)

    def begin_step(self, *, is_divided: bool) -> None:
        """Before the augmentation of a step of which nothing is done yet; a divided one may be left in its middle."""
        if is_divided:
            self._augmentation_before = self.augmentation.get_state()
        self.gradients.begin()

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """The network's answer in float32, with everything that `backward` needs."""
        if self._is_channels_last:
            inputs = tuple(_by_pixel(tensor) for tensor in inputs)
        with self._context:
            outputs: Tensor = self.network(*inputs)
        return outputs.float()

    def backward(self, loss: Tensor, share: float) -> None:
        """Add the gradients of a micro-batch that holds this share of its step's rows; `loss` is its mean."""
        torch.autograd.backward(self.gradients.scale(loss if share == 1 else loss * share))

    def finish_step(self, learning_rate: float, loss: Tensor, number: int) -> None:
        """Turn the gradients of a step into step `number`, counted from 0; `loss` is the mean of all its rows."""
        found_inf = self.gradients.finish(loss)
        guard = self.gradients.guard
        rate = learning_rate if guard is None else guard.rate_share * learning_rate
        self._optimizer.step(rate, found_inf)
        if self._average is not None:
            self._average.update(number, found_inf)

    # Evaluation.

    @contextmanager
    def examined(self) -> Iterator[nn.Module]:
        """The network as it is evaluated and exported: with averaged weights if they are asked for, without dropout."""
        self.network.eval()
        try:
            with torch.no_grad(), self._average.in_place() if self._average else nullcontext():
                yield self.network
        finally:
            self.network.train()

    def weights(self) -> dict[str, Tensor]:
        """A copy of the network's weights and buffers as they are now, on the CPU."""
        return copy_to_host(self.network.state_dict())

    @property
    def averages(self) -> bool:
        """Whether what is evaluated differs from what is trained."""
        return self._average is not None

    # The rest of the training.

    def state(self, step_loss: Tensor | None) -> dict[str, Tensor]:
        """A copy, on the CPU, of all tensors beside the weights that decide the rest of the training.

        `step_loss` is that of the rows whose gradients are summed already, None where a step is just done.
        """
        random = {_AUGMENTATION: self.augmentation.get_state(), _CPU: torch.get_rng_state()}
        if self._device.type == "cuda":
            random[_CUDA] = torch.cuda.get_rng_state(self._device)
        partial: dict[str, Tensor] = {}
        if step_loss is not None:
            # The rows of the step are augmented again, and must become the same ones.
            random[_AUGMENTATION] = self._augmentation_before
            partial = {_STEP_LOSS: step_loss}
            for name, parameter in self._parameters.items():
                if parameter.grad is not None:
                    partial[_GRADIENT + name] = parameter.grad
        return copy_to_host({**self._fixed_state(), **partial, **random})

    def restore(self, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Tensor | None:
        """Continue from a copy of both; before `begin`.  Returns the `step_loss` that was kept, if one was.

        Raises TrainingFailure if they do not fit the network.
        """
        try:
            self.network.load_state_dict(dict(weights))
            with torch.no_grad():
                for name, tensor in self._fixed_state().items():
                    tensor.copy_(tensors[name])
                for name, parameter in self._parameters.items():
                    if (gradient := tensors.get(_GRADIENT + name)) is not None:
                        parameter.grad = torch.empty_like(parameter).copy_(gradient)
        except (KeyError, RuntimeError) as error:
            raise TrainingFailure(f"the checkpoint does not fit the network: {error}") from error
        self._restored = tensors
        step_loss = tensors.get(_STEP_LOSS)
        return None if step_loss is None else step_loss.to(self._device)

    def _fixed_state(self) -> dict[str, Tensor]:
        average = self._average.state if self._average else {}
        return {**self._optimizer.state, **self.gradients.state, **average}


def _by_pixel(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
