"""The threads that help a run of torch, and the one thread on which such runs happen."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace_server.inference.backends.one_thread import OnOneThread
from headrace_server.inference.backends.torch_threads import rest, use_threads
from headrace_server.precision import Precision
from headrace_server.tensors import Tensors

GNU_OPENMP = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
ROWS: Tensors = {"x": np.zeros((1, 2), np.float32)}


def num_threads_of_the_process() -> int:
    return len([*Path("/proc/self/task").iterdir()])


@pytest.mark.skipif(not GNU_OPENMP.exists(), reason="torch brings another OpenMP")
def test_helpers_go_when_fewer_are_wanted_and_when_nothing_is_computed_any_more() -> None:
    seen: list[bool] = []

    def compute(begin: Callable[[], None]) -> None:
        begin()
        torch.exp(torch.ones(512, 512)).sum()

    def compute_with_few_and_many() -> None:
        compute(lambda: use_threads(1))
        alone = num_threads_of_the_process()
        for begin, num_helpers in (
            (lambda: use_threads(3), 2),
            (lambda: use_threads(1), 0),
            (lambda: use_threads(3), 2),
            (rest, 0),
        ):
            compute(begin)
            until = time.monotonic() + 10  # who goes takes a moment
            while num_threads_of_the_process() != alone + num_helpers and time.monotonic() < until:
                time.sleep(0.001)
            seen.append(num_threads_of_the_process() == alone + num_helpers)

    thread = threading.Thread(target=compute_with_few_and_many)
    thread.start()
    thread.join()

    assert seen == [True] * 4


class Told:
    """A session that notes on which threads it is used."""

    device = "cpu"
    precision = Precision.BF16

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.is_closed = False

    def run(self, inputs: Tensors) -> Tensors:
        self.threads.add(threading.get_ident())
        if not inputs:
            raise ValueError("nothing to run")
        return inputs

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.is_closed = True


def test_everything_happens_on_one_thread_whoever_asks() -> None:
    told = Told()
    session = OnOneThread(told)
    answers: list[Tensors] = []
    callers = [threading.Thread(target=lambda: answers.append(session.run(ROWS))) for _ in range(4)]

    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    with pytest.raises(ValueError, match="nothing to run"):
        session.run({})
    session.close()

    assert answers == [ROWS] * 4
    assert (session.device, session.precision, told.is_closed) == ("cpu", Precision.BF16, True)
    assert len(told.threads) == 1
    assert threading.get_ident() not in told.threads


def test_its_thread_ends_with_it() -> None:
    session = OnOneThread(Told())
    (thread,) = (one for one in threading.enumerate() if one.name == "lane-alone")

    session.close()
    thread.join(10)

    assert not thread.is_alive()
