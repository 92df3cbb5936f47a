"""When a network is compiled, and what becomes of it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from headrace_server.trainers import compiling
from headrace_server.trainers.compiling import Compiling, is_worth_it
from headrace_server.trainers.loop import Outcome
from headrace_server.trainers.recipe import Compilation, Recipe, Steps
from headrace_server.trainers.reports import PhaseChanged, TrainerReport, WarningRaised
from tests.doubles.loop_run import PLAIN, Run
from tests.doubles.tiny_task import TinyTask

CPU, GPU = torch.device("cpu"), torch.device("cuda")
RECIPE = Recipe(seed=1)


class Learner:
    """A network whose steps take as long as they are told to."""

    def __init__(self, eager_seconds: float, compiled_seconds: float) -> None:
        self.network: nn.Module = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
        self.seconds = {False: eager_seconds, True: compiled_seconds}
        self.is_compiled = False
        self.now = 0.0

    def compile(self) -> None:
        self.is_compiled = True

    def interpret(self) -> None:
        self.is_compiled = False

    def perf_counter(self) -> float:
        return self.now


def run(
    learner: Learner, monkeypatch: pytest.MonkeyPatch, recipe: Recipe = RECIPE, num_steps: int = 100_000, ranks: int = 1
) -> list[TrainerReport]:
    """A hundred steps; the device is a GPU that needs none."""
    reports: list[TrainerReport] = []
    monkeypatch.setattr(compiling, "time", learner)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    subject = Compiling(learner, recipe, GPU, num_steps, reports.append, num_ranks=ranks)
    for step in range(100):
        subject.before_step(step)
        learner.now += learner.seconds[learner.is_compiled]
    subject.close(100)
    return reports


def test_long_trainings_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(0.010, 0.008)

    reports = run(learner, monkeypatch)

    assert learner.is_compiled
    assert reports == [PhaseChanged(phase="compiling"), PhaseChanged(phase="training")]


def test_short_trainings_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(0.010, 0.008)

    assert run(learner, monkeypatch, num_steps=10_000) == []
    assert not learner.is_compiled
    assert is_worth_it(0.010, 100_000, 2)
    assert not is_worth_it(0.010, 10_000, 2)


def test_what_is_no_faster_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(0.010, 0.012)

    reports = run(learner, monkeypatch)

    assert not learner.is_compiled
    assert isinstance(reports[-1], WarningRaised)
    assert reports[-1].message == "compiled steps take 12 ms, others 10 ms: given up"


@pytest.mark.parametrize(
    ("changes", "ranks"),
    [({"compilation": Compilation.NEVER}, 1), ({"deterministic": True}, 1), ({}, 2)],
)
def test_nothing_is_predicted_where_it_must_not_be(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], ranks: int
) -> None:
    learner = Learner(0.010, 0.001)

    assert run(learner, monkeypatch, RECIPE.model_copy(update=changes), ranks=ranks) == []
    assert not learner.is_compiled


@pytest.mark.slow
def test_a_compiled_training_learns_the_same(tmp_path: Path) -> None:
    recipe = PLAIN.model_copy(update={"length": Steps(count=5)})
    plain = Run(tmp_path / "1", recipe, TinyTask(is_plain=True))
    compiled = Run(
        tmp_path / "2", recipe.model_copy(update={"compilation": Compilation.ALWAYS}), TinyTask(is_plain=True)
    )

    outcomes = [run.go() for run in (plain, compiled)]

    assert outcomes == [Outcome.COMPLETED] * 2
    assert [report.phase for report in compiled.reports if isinstance(report, PhaseChanged)] == [
        "compiling", "training",
    ]  # fmt: skip
    assert compiled.weights.keys() == plain.weights.keys()
    for name, tensor in plain.weights.items():
        torch.testing.assert_close(compiled.weights[name], tensor, rtol=1e-4, atol=1e-5)
