"""The threads that help a run of torch, and the one thread on which such runs happen."""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace_server.inference.backends.one_thread import OneThread, OnOneThread
from headrace_server.inference.backends.torch_export import open_program
from headrace_server.inference.backends.torch_threads import rest, use_threads
from headrace_server.precision import Precision
from headrace_server.tensors import Tensors
from tests.inference.plans.programs import signature, torch_sources

GNU_OPENMP = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
ROWS: Tensors = {"x": np.zeros((1, 2), np.float32)}


NAME = "with helpers"
"""Of a thread and of those that it starts, whatever other threads come and go."""


def num_named() -> int:
    found = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            found += (task / "comm").read_text() == f"{NAME}\n"
    return found


@pytest.mark.skipif(not GNU_OPENMP.exists(), reason="torch brings another OpenMP")
def test_helpers_go_when_fewer_are_wanted_and_when_nothing_is_computed_any_more() -> None:
    seen: list[bool] = []

    def compute(begin: Callable[[], None]) -> None:
        begin()
        torch.exp(torch.ones(512, 512)).sum()

    def compute_with_few_and_many() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(NAME)
        compute(lambda: use_threads(1))
        for begin, num_helpers in (
            (lambda: use_threads(3), 2),
            (lambda: use_threads(1), 0),
            (lambda: use_threads(3), 2),
            (rest, 0),
        ):
            compute(begin)
            until = time.monotonic() + 30  # who goes takes a moment
            while num_named() != 1 + num_helpers and time.monotonic() < until:
                time.sleep(0.001)
            seen.append(num_named() == 1 + num_helpers)

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
    session = OnOneThread(told, OneThread())
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


def alone_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "lane-alone"]


def test_several_sessions_share_a_thread_which_ends_with_the_last_and_begins_again_with_the_next() -> None:
    shared, told = OneThread(), [Told(), Told()]
    sessions = [OnOneThread(one, shared) for one in told]
    for session in sessions:
        session.run(ROWS)
    (thread,) = alone_threads()

    sessions[0].close()
    sessions[1].run(ROWS)
    sessions[1].close()
    thread.join(10)
    again = OnOneThread(Told(), shared)
    assert again.run(ROWS) == ROWS

    assert told[0].threads == told[1].threads
    assert not thread.is_alive()
    again.close()


def test_a_session_that_cannot_be_closed_lets_go_of_the_thread_all_the_same() -> None:
    class Stubborn(Told):
        def close(self) -> None:
            raise RuntimeError("it will not")

    session = OnOneThread(Stubborn(), OneThread())
    (thread,) = alone_threads()

    with pytest.raises(RuntimeError, match="it will not"):
        session.close()
    thread.join(10)

    assert not thread.is_alive()


def test_a_program_runs_with_any_number_of_threads_from_the_same_weights(tmp_path: Path) -> None:
    (path,) = torch_sources(torch.nn.Linear(4, 3), tmp_path).values()
    narrow = open_program(path, signature(4, 3), num_threads=1)
    wide = narrow.with_threads(3)
    x: Tensors = {"x": np.ones((5, 4), np.float32)}

    answers = [narrow.run(x)["output"], wide.run(x)["output"]]
    threads = torch.get_num_threads()
    wide.close()

    assert np.array_equal(answers[0], answers[1])
    assert threads == 3
    assert np.array_equal(narrow.run(x)["output"], answers[0])
    narrow.close()
