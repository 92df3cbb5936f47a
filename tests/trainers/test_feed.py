"""Batches, in their order, wherever they come from."""

import itertools
from pathlib import Path

import pytest
import torch

from headrace_server.trainers import prefetch
from headrace_server.trainers.feed import Feed
from headrace_server.trainers.prefetch import Prefetch, Spot
from headrace_server.trainers.ranks import Place
from headrace_server.trainers.task import Rows

CPU = torch.device("cpu")
ROWS = Rows((torch.arange(37.0)[:, None],), torch.arange(37))


def numbers(feed: Feed, *spots: tuple[int, int]) -> list[list[int]]:
    return [feed.training_batch(5, epoch, position)[1].tolist() for epoch, position in spots]


def test_batches_that_are_fetched_ahead_are_those_that_are_fetched_at_once() -> None:
    at_once, ahead = Feed(ROWS, 8, CPU), Feed(ROWS, 8, CPU, fetches_ahead=True)
    spots = list(itertools.product(range(3), range(5)))

    assert numbers(ahead, *spots) == numbers(at_once, *spots)
    assert sorted(itertools.chain(*numbers(ahead, *spots[:5]))) == list(range(37))
    ahead.close()


def test_a_training_that_goes_on_finds_its_place_at_once() -> None:
    at_once, ahead = Feed(ROWS, 8, CPU), Feed(ROWS, 8, CPU, fetches_ahead=True)

    assert numbers(ahead, (7, 3), (7, 4), (8, 0)) == numbers(at_once, (7, 3), (7, 4), (8, 0))
    assert numbers(ahead, (2, 1)) == numbers(at_once, (2, 1))  # which nobody foresaw
    ahead.close()


def test_ranks_get_their_parts() -> None:
    whole = numbers(Feed(ROWS, 8, CPU), (0, 0), (0, 4))
    parts = [numbers(Feed(ROWS, 8, CPU, Place(rank, 3)), (0, 0), (0, 4)) for rank in range(3)]

    assert [len(batch) for batch in whole] == [8, 5]
    for position in range(2):
        assert list(itertools.chain(*(part[position] for part in parts))) == whole[position]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0  # each look takes a second, and so does each wait
        return self.now


def test_a_training_that_waits_gets_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "time", Clock())
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    subject = Prefetch(lambda spot: (torch.tensor(spot.position),), lambda s: Spot(s.seed, 0, s.position + 1), CPU)

    taken = [int(subject.take(Spot(1, 0, position))[0]) for position in range(70)]

    assert taken == list(range(70))
    assert subject.num_workers == 3  # one core is left to the training
    subject.close()


def test_what_gathering_raises_is_raised_where_the_batch_is_wanted(tmp_path: Path) -> None:
    def fail(_: Spot) -> tuple[torch.Tensor, ...]:
        raise OSError("the file is gone")

    subject = Prefetch(fail, lambda spot: spot, CPU)

    with pytest.raises(OSError, match="the file is gone"):
        subject.take(Spot(1, 0, 0))
    subject.close()
