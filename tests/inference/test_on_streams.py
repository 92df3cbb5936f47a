"""A compiled library that lanes of a GPU share: what is decided about it, with a library and a card of the host."""

import gc
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from headrace_server.errors import DeviceOutOfMemory
from headrace_server.inference.backends.backend import DeviceBroken
from headrace_server.inference.backends.compiled_library import CompiledLibrary, CompiledLibraryFailed
from headrace_server.inference.backends.halves import InHalves
from headrace_server.inference.backends.on_streams import OnStreams
from headrace_server.inference.backends.torch_export import order_of
from headrace_server.inference.backends.torch_graphs import GraphSession
from headrace_server.inference.plans.plan import Form, Plan, Runtime
from headrace_server.inference.plans.preparing import prepare
from headrace_server.models.calibration import draw_rows
from headrace_server.precision import Precision
from tests.doubles.host_card import HostCard, broken
from tests.inference.plans.programs import signature, torch_sources

PLAN = Plan(runtime=Runtime.TORCH, precision=Precision.FP32, form=Form.COMPILED)
WIDTH = 16

pytestmark = pytest.mark.timeout(600)  # compiling takes a while, and gives way to all else that the machine does


class ScriptedWitness:
    """Knows what it is told."""

    device = "cuda:0"

    def __init__(self) -> None:
        self.stream = 0
        self.num_refusals = 0
        self.problem: Exception | None = None

    def check(self) -> None:
        """The device's last word."""
        if self.problem is not None:
            raise self.problem


class ScriptedLibrary(CompiledLibrary):
    """Does what it is told instead of running anything."""

    def __init__(self, act: Callable[[Sequence[Any], int], list[Any]]) -> None:
        self._act = act
        self.is_closed = False

    def run_alone(self, inputs: Sequence[Any], stream: int) -> list[Any]:
        return self._act(inputs, stream)

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 3))


@pytest.fixture(scope="module")
def folder(module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program and its library, compiled once."""
    folder = tmp_path_factory.mktemp("compiled")
    (source,) = torch_sources(module, folder, WIDTH).values()
    of = signature(WIDTH, 3)
    prepare(PLAN, source, of, draw_rows(of).inputs, folder / "library.pt2", 300)
    return folder


def opened(folder: Path) -> tuple[GraphSession, HostCard]:
    card = HostCard()
    library = OnStreams(CompiledLibrary(folder / "library.pt2", 1), ScriptedWitness())
    order = order_of(folder / "program.pt2", signature(WIDTH, 3))
    return GraphSession(library, order, lambda: card, Precision.FP32, is_batchable=True), card


def test_a_compiled_library_is_recorded_for_each_size_of_batch_and_answers_as_the_module_does(
    folder: Path, module: nn.Module
) -> None:
    session, card = opened(folder)

    for rows in (3, 4, 3, 17, 17, 1):
        x = torch.randn(rows, WIDTH)
        answer = session.run({"x": x.numpy()})["output"]
        assert np.allclose(answer, module(x).detach().numpy(), atol=1e-4)
    assert (card.num_recorded, card.num_replayed) == (2, 3)
    session.close()


def test_lanes_share_a_library_which_is_called_by_one_thread_at_a_time_on_the_stream_of_each() -> None:
    at_once, most_at_once, streams = 0, 0, []
    witness = ScriptedWitness()

    def act(inputs: Sequence[Any], stream: int) -> list[Any]:
        nonlocal at_once, most_at_once
        at_once += 1
        most_at_once = max(most_at_once, at_once)
        streams.append(stream)
        threading.Event().wait(0.001)  # lets others try
        at_once -= 1
        return list(inputs)

    library = OnStreams(ScriptedLibrary(act), witness)
    witness.stream = 7
    lanes = [threading.Thread(target=lambda: [library([1]) for _ in range(5)]) for _ in range(4)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join(60)

    assert (most_at_once, streams) == (1, [7] * 20)


def failing(witness: ScriptedWitness, *, has_no_memory: bool) -> OnStreams:
    def act(_: Sequence[Any], __: int) -> list[Any]:
        witness.num_refusals += has_no_memory
        raise CompiledLibraryFailed("the compiled program could not be run (error 1; torch wrote why)")

    return OnStreams(ScriptedLibrary(act), witness)


def test_a_run_that_got_no_memory_is_told_from_one_that_lost_the_device_and_from_one_that_failed() -> None:
    witness = ScriptedWitness()

    with pytest.raises(DeviceOutOfMemory):
        failing(witness, has_no_memory=True)([])
    with pytest.raises(CompiledLibraryFailed, match="could not be run"):
        failing(witness, has_no_memory=False)([])
    witness.problem = broken()
    with pytest.raises(DeviceBroken):
        failing(witness, has_no_memory=False)([])


def test_a_batch_that_a_compiled_library_has_no_memory_for_is_run_in_halves() -> None:
    witness = ScriptedWitness()

    def act(inputs: Sequence[Any], _: int) -> list[Any]:
        if len(inputs[0]) > 8:
            witness.num_refusals += 1
            raise CompiledLibraryFailed("no memory")
        return [inputs[0][:, :3]]

    order = (list(signature(WIDTH, 3).inputs), list(signature(WIDTH, 3).outputs))
    library = OnStreams(ScriptedLibrary(act), witness)
    session = InHalves(GraphSession(library, order, HostCard, Precision.FP32, is_batchable=True))
    x = np.arange(20 * WIDTH, dtype=np.float32).reshape(20, WIDTH)

    answer = session.run({"x": x})["output"]

    assert np.array_equal(answer, x[:, :3])
    assert session.most_rows == 5


def test_the_library_is_closed_with_the_last_lane_that_runs_it_after_its_graphs() -> None:
    native = ScriptedLibrary(lambda inputs, _: [inputs[0][:, :3]])
    order = (list(signature(WIDTH, 3).inputs), list(signature(WIDTH, 3).outputs))
    session = GraphSession(OnStreams(native, ScriptedWitness()), order, HostCard, Precision.FP32, is_batchable=True)
    twin = session.twin()
    for lane in (session, twin):
        for _ in range(2):
            lane.run({"x": np.zeros((2, WIDTH), np.float32)})

    session.close()
    gc.collect()
    after_the_first = native.is_closed
    twin.close()
    gc.collect()

    assert (after_the_first, native.is_closed) == (False, True)
