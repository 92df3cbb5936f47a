"""Batch normalisation over ranks is that of one rank with all their rows."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from headrace_server.trainers.batch_statistics import SharedBatchNorm, share_statistics
from headrace_server.trainers.ranks import ALONE, Place

PATIENCE_SECONDS = 240


class Meeting:
    """Ranks in threads of one process, which meet in `sum`."""

    shards = False

    def __init__(self, place: Place, barrier: threading.Barrier, table: list[Tensor | None]) -> None:
        self.place, self._barrier, self._table = place, barrier, table

    def sum(self, tensor: Tensor) -> Tensor:
        self._table[self.place.rank] = tensor.clone()
        self._barrier.wait(PATIENCE_SECONDS)
        total = torch.stack([part for part in self._table if part is not None]).sum(0)
        self._barrier.wait(PATIENCE_SECONDS)
        return tensor.copy_(total)


def network(kind: type[nn.Module]) -> nn.Module:
    normalised = kind(3)
    with torch.no_grad():
        for parameter, values in zip(normalised.parameters(), ([0.5, 1.5, 2.0], [-1.0, 0.25, 1.0]), strict=True):
            parameter.copy_(torch.tensor(values))
    return nn.Sequential(normalised)


def in_ranks(size: int, work: Callable[[Meeting], None]) -> None:
    barrier, table = threading.Barrier(size), list[Tensor | None]([None] * size)
    faults: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            work(Meeting(Place(rank, size), barrier, table))
        except BaseException as fault:  # noqa: BLE001 - told to the test's own thread
            faults.append(fault)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert not faults, faults


@pytest.mark.parametrize(
    ("kind", "shape", "parts"),
    [
        (nn.BatchNorm1d, (9, 3), (4, 5)),
        (nn.BatchNorm2d, (7, 3, 4, 5), (1, 6)),
        (nn.BatchNorm2d, (6, 3, 4, 5), (6, 0)),
        (nn.BatchNorm1d, (12, 3, 2), (3, 4, 5)),
    ],
)
def test_outputs_gradients_and_running_statistics_are_those_of_one_rank(
    kind: type[nn.Module], shape: tuple[int, ...], parts: tuple[int, ...]
) -> None:
    """A rank without a row of its own computes two others to keep company; they must not count."""
    rows = 10 + torch.randn(shape, generator=torch.Generator().manual_seed(2))
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    whole, whole_rows = network(kind), rows.clone().requires_grad_()
    expected = whole(whole_rows)
    torch.autograd.backward((expected * weights).sum())
    found: dict[int, tuple[Tensor, Tensor, nn.Module]] = {}
    begins = [sum(parts[:rank]) for rank in range(len(parts))]

    def work(world: Meeting) -> None:
        own = network(kind)
        attendance = share_statistics(own, world)  # type: ignore[arg-type]  # it is asked for sums only
        assert attendance is not None
        begin, count = begins[world.place.rank], parts[world.place.rank]
        attendance.counts = count > 0
        mine = (rows[begin : begin + count] if count else rows[:2]).clone().requires_grad_()
        answers = own(mine)
        factors = weights[begin : begin + count] if count else torch.zeros_like(mine)
        torch.autograd.backward((answers * factors).sum())
        assert mine.grad is not None
        found[world.place.rank] = (answers.detach()[:count], mine.grad[:count], own)

    in_ranks(len(parts), work)

    ranks = [found[rank] for rank in range(len(parts))]
    assert whole_rows.grad is not None
    torch.testing.assert_close(torch.cat([answers for answers, _, _ in ranks]), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([grads for _, grads, _ in ranks]), whole_rows.grad, rtol=1e-4, atol=1e-5)
    for name, parameter in whole.named_parameters():
        grads = [dict(own.named_parameters())[name].grad for _, _, own in ranks]
        total = torch.stack([grad for grad in grads if grad is not None]).sum(0)
        torch.testing.assert_close(total, parameter.grad, rtol=1e-4, atol=1e-4)
    for _, _, own in ranks:
        for name, buffer in whole.named_buffers():
            torch.testing.assert_close(dict(own.named_buffers())[name], buffer, rtol=1e-5, atol=1e-5)


def test_a_network_keeps_its_names_and_is_evaluated_as_before() -> None:
    plain, shared = network(nn.BatchNorm1d), network(nn.BatchNorm1d)
    rows = torch.randn(5, 3)

    assert share_statistics(shared, ALONE) is not None
    assert isinstance(shared[0], SharedBatchNorm)  # type: ignore[index]
    assert shared.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(shared.eval()(rows), plain.eval()(rows))


def test_alone_a_layer_is_what_it_was() -> None:
    plain, shared = network(nn.BatchNorm1d), network(nn.BatchNorm1d)
    attendance = share_statistics(shared, ALONE)
    assert attendance is not None
    rows = torch.randn(5, 3)

    with attendance.alone():
        assert torch.equal(shared(rows), plain(rows))


def test_a_network_without_batch_normalisation_has_nothing_to_share() -> None:
    assert share_statistics(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), ALONE) is None
