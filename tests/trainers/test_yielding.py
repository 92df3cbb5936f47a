"""How a training gives way to predictions."""

from pathlib import Path

import pytest
import torch

from headrace_server.trainers import yielding
from headrace_server.trainers.recipe import Placement
from headrace_server.trainers.yielding import Yielding
from tests.doubles.loop_run import PLAIN, Run, same
from tests.doubles.tiny_task import TinyTask

CPU = torch.device("cpu")


class BusyGate:
    """Models that are always busy: whoever waits is kept for as long as they let themselves be kept."""

    def __init__(self, clock: "Clock | None" = None) -> None:
        self.waits: list[float] = []
        self._clock = clock

    def wait(self, max_seconds: float) -> float:
        self.waits.append(max_seconds)
        if self._clock is not None:
            self._clock.now += max_seconds
        return max_seconds


class Clock:
    """Stands where the machine's clock stands."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(yielding, "time", clock)
    return clock


def test_micro_batches_become_so_short_that_nobody_waits_long(clock: Clock) -> None:
    manners = Yielding(BusyGate(clock), Placement(max_block_seconds=0.02), CPU, adapts=True)
    assert manners.rows(64) == 64

    for _ in range(50):
        rows = manners.rows(64)
        manners.give_way()
        clock.now += 0.001 * rows  # a millisecond a row
        manners.done(rows)

    assert manners.rows(64) in (15, 16)
    assert manners.rows(8) == 8


def test_a_training_keeps_its_share_however_busy_the_models_are(clock: Clock) -> None:
    manners = Yielding(BusyGate(clock), Placement(min_share=0.25), CPU, adapts=False)
    began_at, worked = clock.now, 0.0

    for _ in range(100):
        manners.give_way()
        clock.now += 0.01
        worked += 0.01
        manners.done(8)

    assert worked / (clock.now - began_at) == pytest.approx(0.25, rel=0.01)


def test_the_loop_gives_way_before_each_micro_batch_and_says_how_long(tmp_path: Path) -> None:
    plain = Run(tmp_path / "1", PLAIN, TinyTask(is_plain=True))
    gate = BusyGate()
    recipe = PLAIN.model_copy(update={"micro_batches": 2})
    polite = Run(
        tmp_path / "2",
        recipe,
        TinyTask(is_plain=True),
        yielding=Yielding(gate, Placement(min_share=0.5), CPU, adapts=False),
    )

    plain.go()
    polite.go()

    assert len(gate.waits) == 4 * (4 * 2 + 1)  # epochs of four full steps and one of five rows, which nobody halves
    assert any("yield" in report.step_seconds for report in polite.steps)
    assert not any("yield" in report.step_seconds for report in plain.steps)
    assert not same(plain.weights, {})
