"""All that a training changes: the network, its gradients, the optimizer, the moving average, and the generators.

Everything here that decides the rest of a training is a tensor with a name, so that a checkpoint is a dictionary.
Knows neither rows nor time: `loop.py` says what comes when.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from headrace_server.errors import InvalidSpec, Violation
from headrace_server.precision import Precision
from headrace_server.trainers.arithmetic import choose_precision, forward_context, prefers_channels_last
from headrace_server.trainers.checkpoint import copy_to_host
from headrace_server.trainers.failures import TrainingFailure
from headrace_server.trainers.gradients import Gradients
from headrace_server.trainers.moving_average import MovingAverage, trained_parameters
from headrace_server.trainers.optimizers import LossScale, make_optimizer
from headrace_server.trainers.randomness import Use, derive_seed
from headrace_server.trainers.ranks import ALONE, World
from headrace_server.trainers.recipe import Recipe
from headrace_server.trainers.utilization import count_flops, peak_flops

if TYPE_CHECKING:
    from headrace_server.trainers.batch_statistics import Attendance

_GRADIENT, _STEP_LOSS = "gradient.", "step_loss"
_AUGMENTATION, _CPU, _CUDA = "random.augmentation", "random.cpu", "random.cuda"


class Learner:
    """One network in training, or this rank's share of it.

    It lies on the CPU with its initial weights, which are the same on all ranks, and is moved to `device`.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, device: torch.device, world: World | None = None) -> None:
        self._recipe, self._device, self._world = recipe, device, world or ALONE
        self._is_channels_last = prefers_channels_last(recipe.channels_last, device)
        self._attendance: Attendance | None = None
        if self._world.place.size > 1 and recipe.synchronize_batch_norm:
            from headrace_server.trainers.batch_statistics import share_statistics  # loads the compiler

            self._attendance = share_statistics(network, self._world)
        self.network = network.to(device)
        if self._is_channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stubs lack it
        self._wrapped = self._world.wrap(self.network)
        self._called: Callable[..., Tensor] = self._wrapped
        self._parameters = trained_parameters(self.network)
        local = self._world.local if self._world.shards else None
        self._optimizer = make_optimizer(recipe.optimizer, self.network, local)
        precision = choose_precision(recipe.precision, device)
        self._context = forward_context(precision, device)
        self._peak = peak_flops(device, precision, allows_tf32=torch.backends.cuda.matmul.allow_tf32)
        self.gradients = Gradients(
            self.network,
            list(self._parameters.values()),
            device,
            loss_scale=LossScale(device) if precision is Precision.FP16 else None,
            max_norm=recipe.max_gradient_norm,
            numerics=recipe.numerics,
            world=self._world,
        )
        average = recipe.moving_average
        self._average = None if average is None else MovingAverage(self._held(), average.decay)
        rank = self._world.place.rank
        self.augmentation = torch.Generator(device).manual_seed(derive_seed(recipe.seed, Use.AUGMENTATION, rank))
        self._augmentation_before = self.augmentation.get_state()
        self._before: tuple[Mapping[str, Tensor], Sequence[Tensor]] | None = None  # a divided step of several ranks
        self._restored: Mapping[str, Tensor] | None = None

    # One step.

    def begin(self) -> None:
        """Before the first step: set torch's own generators, which dropout uses; they belong to the whole process."""
        self.network.train()
        rank = self._world.place.rank
        torch.manual_seed(derive_seed(self._recipe.seed, Use.TRAINING, rank))
        if self._restored is None or _of_rank(_CPU, rank) not in self._restored:
            return  # a rank more than there were
        names = (_AUGMENTATION, _CPU, *([_CUDA] if self._device.type == "cuda" else []))
        self._set_random_state({name: self._restored[_of_rank(name, rank)] for name in names})
        self._augmentation_before = self.augmentation.get_state()

    def begin_step(self, *, is_divided: bool) -> None:
        """Before the augmentation of a step of which nothing is done yet; a divided one may be left in its middle."""
        if is_divided:
            self._augmentation_before = self.augmentation.get_state()
            if self._world.place.size > 1:
                self._before = self._random_state(), [buffer.clone() for buffer in self.network.buffers()]
        self.gradients.begin()

    def rewind_step(self) -> None:
        """Undo what was done of a divided step of several ranks, whose gradients are others on each of them."""
        assert self._before is not None
        random, buffers = self._before
        self._set_random_state(random)
        with torch.no_grad():
            for buffer, before in zip(self.network.buffers(), buffers, strict=True):
                buffer.copy_(before)
        self.network.zero_grad(set_to_none=True)

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """The network's answer in float32, with everything that `backward` needs."""
        if self._is_channels_last:
            inputs = tuple(_by_pixel(tensor) for tensor in inputs)
        with self._context:
            outputs: Tensor = self._called(*inputs)
        return outputs.float()

    def part_of_step(self, *, is_last: bool, counts: bool) -> AbstractContextManager[object]:
        """What forward and backward of a micro-batch run in: only the last of a step adds up gradients of all ranks.

        `counts` is whether its rows belong to the step, or only keep the other ranks company.
        """
        if self._attendance is not None:
            self._attendance.counts = counts
        return nullcontext() if is_last else self._world.apart()

    def backward(self, loss: Tensor, share: float) -> None:
        """Add the gradients of a micro-batch that holds this share of its step's rows; `loss` is its mean."""
        share *= self._world.place.size  # because the ranks' gradients are averaged
        torch.autograd.backward(self.gradients.scale(loss if share == 1 else loss * share))

    def finish_step(self, learning_rate: float, loss: Tensor, number: int) -> None:
        """Turn the gradients of a step into step `number`, counted from 0; `loss` is the mean of all its rows."""
        found_inf = self.gradients.finish(loss)
        guard = self.gradients.guard
        rate = learning_rate if guard is None else guard.rate_share * learning_rate
        self._optimizer.step(rate, found_inf)
        if self._average is not None:
            self._average.update(number, found_inf)

    def rehearse(self, inputs: tuple[Tensor, ...], loss: Callable[[Tensor], Tensor]) -> Tensor:
        """The loss of a forward pass whose backward pass stays on this rank, and whose gradients nobody wants."""
        with self._world.apart(), self._attendance.alone() if self._attendance else nullcontext():
            return self.gradients.scale(loss(self.forward(inputs)))

    def seconds_of_row(self, forward: Callable[[], Tensor], rows: int) -> float | None:
        """How long a row would take if the device did nothing but the network's arithmetic, at its peak.

        `forward` is a rehearsal of so many rows.  None where the peak is not known.
        """
        if self._peak is None:
            return None
        flops = count_flops(forward)
        self.network.zero_grad(set_to_none=True)
        return flops / rows / self._peak

    def compile(self, rescue: Callable[[Exception], bool]) -> None:
        """Compute forward and backward passes with compiled code from the next one on, which compiles it.

        Where that fails, `rescue` is asked whether to try again; if not, the network is computed without from then on.
        """
        compiled = torch.compile(self._wrapped)

        def attempt(*inputs: Tensor) -> Tensor:
            try:
                outputs: Tensor = compiled(*inputs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - compilers and what they read fail in every way
                torch.compiler.reset()
                if rescue(error):
                    return attempt(*inputs)
                self.interpret()
                return self._called(*inputs)
            self._called = compiled
            return outputs

        self._called = attempt

    def interpret(self) -> None:
        """Compute without compiled code from the next pass on."""
        self._called = self._wrapped

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
        tensors = self.network.state_dict()
        if self._world.shards:
            owners = dict(self.network.named_parameters())
            tensors = {
                name: self._world.whole(owners[name], self._world.local(tensor)) if name in owners else tensor
                for name, tensor in tensors.items()
            }
        return copy_to_host(tensors)

    @property
    def averages(self) -> bool:
        """Whether what is evaluated differs from what is trained."""
        return self._average is not None

    # The rest of the training.

    def state(self, step_loss: Tensor | None) -> dict[str, Tensor]:
        """A copy, on the CPU, of all tensors beside the weights that decide the rest of the training.

        `step_loss` is that of the rows whose gradients are summed already, None where a step is just done.
        """
        random = self._random_state()
        partial: dict[str, Tensor] = {}
        if step_loss is not None:
            # The rows of the step are augmented again, and must become the same ones.
            random[_AUGMENTATION] = self._augmentation_before
            partial = {_STEP_LOSS: step_loss}
            for name, parameter in self._parameters.items():
                if parameter.grad is not None:
                    partial[_GRADIENT + name] = parameter.grad
        for rank, states in enumerate(self._world.collect(random)):
            partial |= {_of_rank(name, rank): state for name, state in states.items()}
        fixed = self._fixed_state()
        if self._world.shards:
            fixed = {
                name: tensor if (owner := self._owner(name)) is None else self._world.whole(owner, tensor)
                for name, tensor in fixed.items()
            }
        return copy_to_host({**fixed, **partial})

    def restore(self, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Tensor | None:
        """Continue from a copy of both; before `begin`.  Returns the `step_loss` that was kept, if one was.

        Several ranks do not continue inside a step: whose rows its gradients are of is known to one rank alone.
        Raises TrainingFailure if they do not fit the network.
        """
        is_alone = self._world.place.size == 1
        try:
            self._load(weights)
            with torch.no_grad():
                for name, tensor in self._fixed_state().items():
                    owner = self._owner(name) if self._world.shards else None
                    tensor.copy_(tensors[name] if owner is None else self._world.part(owner, tensors[name]))
                for name, parameter in self._parameters.items():
                    if is_alone and (gradient := tensors.get(_GRADIENT + name)) is not None:
                        parameter.grad = torch.empty_like(parameter).copy_(gradient)
        except (KeyError, RuntimeError) as error:
            raise TrainingFailure(f"the checkpoint does not fit the network: {error}") from error
        self._restored = tensors
        step_loss = tensors.get(_STEP_LOSS) if is_alone else None
        return None if step_loss is None else step_loss.to(self._device)

    def begin_with(self, weights: Mapping[str, Tensor]) -> None:
        """Give the network these weights before its first step.

        Raises InvalidSpec, which names the first that differs from the network's own.
        """
        for name, own in self.network.state_dict().items():
            given = weights.get(name)
            if given is None or given.shape != own.shape:
                has = "none" if given is None else f"one of the shape {list(given.shape)}"
                problem = f"the network has a weight {name!r} of the shape {list(own.shape)}, the start has {has}"
                raise InvalidSpec([Violation("start_from", problem)])
        self._load({name: weights[name] for name in self.network.state_dict()})
        if self._average is not None:
            self._average.restart()

    @torch.no_grad()
    def _load(self, weights: Mapping[str, Tensor]) -> None:
        if not self._world.shards:
            self.network.load_state_dict(dict(weights))
            return
        owners = dict(self.network.named_parameters())
        for name, tensor in self.network.state_dict().items():
            if name in owners:
                self._world.local(tensor).copy_(self._world.part(owners[name], weights[name]))
            else:
                tensor.copy_(weights[name])

    def _random_state(self) -> dict[str, Tensor]:
        random = {_AUGMENTATION: self.augmentation.get_state(), _CPU: torch.get_rng_state()}
        if self._device.type == "cuda":
            random[_CUDA] = torch.cuda.get_rng_state(self._device)
        return random

    def _set_random_state(self, random: Mapping[str, Tensor]) -> None:
        self.augmentation.set_state(random[_AUGMENTATION])
        torch.set_rng_state(random[_CPU])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(random[_CUDA], self._device)

    def _fixed_state(self) -> dict[str, Tensor]:
        average = self._average.state if self._average else {}
        return {**self._optimizer.state, **self.gradients.state, **average}

    def _held(self) -> dict[str, Tensor]:
        """What this rank holds of the parameters that are trained."""
        return {name: self._world.local(parameter.detach()) for name, parameter in self._parameters.items()}

    def _owner(self, name: str) -> Tensor | None:
        """The parameter whose shape a tensor of the state has; None where it has a shape of its own."""
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            group, _, rest = rest.partition(".")
            return None if group == "step" else self._parameters[rest]
        return self._parameters[rest] if kind == "average" else None


def _of_rank(name: str, rank: int) -> str:
    """Rank 0 keeps the names that a training of one rank has."""
    return name if rank == 0 else f"{name}.{rank}"


def _by_pixel(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
