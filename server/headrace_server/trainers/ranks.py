"""Joins the trainer processes of one job, its ranks: who computes which rows, and what they decide together.

Every rank runs the same loop in step.  Rank 0 reports, keeps the checkpoints and hears commands; what only it can know
(the time, a stop, room for a checkpoint) it tells the others as Wishes, which all of them follow after the next step.
Data lie on every rank, and each takes its part of a step's rows; gradients are weighted by rows, so that uneven parts,
and ranks without a row, change nothing about the step.

The environment is the one that torchrun sets: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from headrace_server.errors import InvalidSpec, Violation
from headrace_server.trainers.recipe import Strategy

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others before it gives up: longer than any evaluation or checkpoint of theirs."""


Wishes: TypeAlias = int
"""What rank 0 wants to happen after a step: any of the five below together.  Plain numbers, since every step asks."""
NOTHING, REPORT, CHECKPOINT, STOP = 0, 1, 2, 4
ROOM, ROOM_FOR_BEST = 8, 16
"""There is room for an ordinary checkpoint, and for a best one."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which of how many ranks this process is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Place":
        """What torchrun's variables say; alone where there are none."""
        if "RANK" not in environment:
            return cls()
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank = int(environment.get("LOCAL_RANK", str(rank)))
        return cls(rank, size, local_rank, int(environment.get("LOCAL_WORLD_SIZE", str(size))))

    def rows(self, num_rows: int) -> slice:
        """Its part of so many rows; parts differ by one row at most, and may be empty."""
        return slice(self.rank * num_rows // self.size, (self.rank + 1) * num_rows // self.size)


class World(Protocol):
    """All ranks of a job, seen from one of them.  Every method but `place` must be called by all of them, in step."""

    @property
    def place(self) -> Place:
        """Where this process is among them."""
        ...

    def wrap(self, network: nn.Module) -> nn.Module:
        """What to call in forward passes, so that backward passes add up the gradients of all ranks, by their mean.

        A fully sharded network is changed in place.
        """
        ...

    def apart(self) -> AbstractContextManager[object]:
        """Backward passes in this context keep their gradients to themselves, until one outside of it adds all up."""
        ...

    def take(self, wishes: Callable[[], Wishes]) -> Wishes:
        """What is to happen after this step."""
        ...

    def post(self, wishes: Callable[[], Wishes]) -> None:
        """Let rank 0 wish for something after the next step."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks of a small tensor, in place where there is more than one."""
        ...

    def largest(self, tensor: Tensor) -> Tensor:
        """The largest value over all ranks of a small tensor, in place where there is more than one."""
        ...

    def from_first(self, tensors: Sequence[Tensor]) -> None:
        """Give every rank the values of rank 0, in place."""
        ...

    def join_rows(self, rows: Tensor, num_rows: int) -> Tensor:
        """All rows, in order, from the part that each rank has (`Place.rows`)."""
        ...

    def collect(self, tensors: Mapping[str, Tensor]) -> Sequence[Mapping[str, Tensor]]:
        """These tensors of every rank, on the CPU, by rank; they have the same shapes everywhere."""
        ...

    @property
    def shards(self) -> bool:
        """Whether each rank holds only a part of every parameter."""
        ...

    def local(self, tensor: Tensor) -> Tensor:
        """The part of a parameter, or of its gradient, that this rank holds."""
        ...

    def whole(self, parameter: Tensor, part: Tensor) -> Tensor:
        """What belongs to a parameter (its average, its momentum) as a whole, from the parts that the ranks hold."""
        ...

    def part(self, parameter: Tensor, whole: Tensor) -> Tensor:
        """The inverse of `whole`."""
        ...


class _Alone:
    """One process is the whole world."""

    place = Place()
    shards = False

    def wrap(self, network: nn.Module) -> nn.Module:
        return network

    def apart(self) -> AbstractContextManager[object]:
        return nullcontext()

    def take(self, wishes: Callable[[], Wishes]) -> Wishes:
        return wishes()

    def post(self, wishes: Callable[[], Wishes]) -> None:
        pass

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def largest(self, tensor: Tensor) -> Tensor:
        return tensor

    def from_first(self, tensors: Sequence[Tensor]) -> None:
        pass

    def join_rows(self, rows: Tensor, num_rows: int) -> Tensor:
        return rows

    def collect(self, tensors: Mapping[str, Tensor]) -> Sequence[Mapping[str, Tensor]]:
        return [tensors]

    def local(self, tensor: Tensor) -> Tensor:
        return tensor

    def whole(self, parameter: Tensor, part: Tensor) -> Tensor:
        return part

    def part(self, parameter: Tensor, whole: Tensor) -> Tensor:
        return whole


ALONE: World = _Alone()


@contextmanager
def joined(place: Place, device: torch.device, strategy: Strategy) -> Iterator[World]:
    """Meet the other ranks for a while.

    Raises InvalidSpec where a machine has fewer GPUs than ranks, and torch's DistError when they do not come together.
    """
    if place.size == 1:
        yield ALONE
        return
    ranks = _Ranks(place, device, strategy)
    try:
        yield ranks
    finally:
        ranks.close()


class _Ranks:
    """Several processes, joined by NCCL on GPUs and by Gloo on CPUs."""

    def __init__(self, place: Place, device: torch.device, strategy: Strategy) -> None:
        import torch.distributed as dist  # takes time that a training of one rank should not spend

        self._dist, self.place, self._device = dist, place, device
        self.shards = strategy is Strategy.FULLY_SHARDED
        if device.type == "cuda" and place.local_size > torch.cuda.device_count():
            problem = f"this machine has {torch.cuda.device_count()} GPUs for {place.local_size} ranks"
            raise InvalidSpec([Violation("resources.ranks", problem)])
        if os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        # Wishes and what goes into checkpoints lie on the host, and must not wait for the device.
        self._host = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self._apart: Callable[[], AbstractContextManager[object]] = nullcontext
        self._wishes = torch.zeros((), dtype=torch.int64)
        self._posted: Any = None

    def close(self) -> None:
        self._dist.destroy_process_group()

    def wrap(self, network: nn.Module) -> nn.Module:
        if self.shards:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(self._device.type, (self.place.size,))
            for child in network.children():
                if any(True for _ in child.parameters()):
                    fully_shard(child, mesh=mesh)
            fully_shard(network, mesh=mesh)
            self._apart = lambda: _unsynchronised(network)
            return network
        devices = [self._device] if self._device.type == "cuda" else None
        replicated = nn.parallel.DistributedDataParallel(network, device_ids=devices)
        self._apart = replicated.no_sync
        return replicated

    def apart(self) -> AbstractContextManager[object]:
        return self._apart()

    def take(self, wishes: Callable[[], Wishes]) -> Wishes:
        if self._posted is None:
            return NOTHING
        self._posted.wait()
        return int(self._wishes)

    def post(self, wishes: Callable[[], Wishes]) -> None:
        # It travels while the next step is computed.
        self._wishes.fill_(wishes() if self.place.rank == 0 else NOTHING)
        self._posted = self._dist.broadcast(self._wishes, src=0, group=self._host, async_op=True)

    def sum(self, tensor: Tensor) -> Tensor:
        self._dist.all_reduce(tensor)
        return tensor

    def largest(self, tensor: Tensor) -> Tensor:
        self._dist.all_reduce(tensor, op=self._dist.ReduceOp.MAX)
        return tensor

    def from_first(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            self._dist.broadcast(tensor, src=0)

    def join_rows(self, rows: Tensor, num_rows: int) -> Tensor:
        most = -(-num_rows // self.place.size)  # all parts must have one size to be gathered
        padded = rows.new_zeros((most, *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.place.size)]
        self._dist.all_gather(parts, padded)
        places = [Place(rank, self.place.size).rows(num_rows) for rank in range(self.place.size)]
        return torch.cat([part[: place.stop - place.start] for part, place in zip(parts, places, strict=True)])

    def collect(self, tensors: Mapping[str, Tensor]) -> Sequence[Mapping[str, Tensor]]:
        found: list[dict[str, Tensor]] = [{} for _ in range(self.place.size)]
        for name, tensor in tensors.items():
            on_host = tensor.cpu().contiguous()
            parts = [torch.empty_like(on_host) for _ in found]
            self._dist.all_gather(parts, on_host, group=self._host)
            for rank, part in enumerate(parts):
                found[rank][name] = part
        return found

    def local(self, tensor: Tensor) -> Tensor:
        return _sharded(tensor).to_local() if self.shards else tensor

    def whole(self, parameter: Tensor, part: Tensor) -> Tensor:
        if not self.shards:
            return part
        from torch.distributed.tensor import DTensor

        like = _sharded(parameter)
        made = DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
        return made.full_tensor()

    def part(self, parameter: Tensor, whole: Tensor) -> Tensor:
        if not self.shards:
            return whole
        from torch.distributed.tensor import distribute_tensor

        like = _sharded(parameter)
        return distribute_tensor(whole.to(self._device), like.device_mesh, like.placements).to_local()


@contextmanager
def _unsynchronised(network: Any) -> Iterator[None]:
    """Keep the gradients of a fully sharded network on their rank."""
    network.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        network.set_requires_gradient_sync(True)


def _sharded(tensor: Tensor) -> "DTensor":
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    return tensor
