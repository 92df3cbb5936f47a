"""When a network is compiled, and what becomes of it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from headrace_server.trainers import compiling, pace
from headrace_server.trainers.compile_cache import CompileCache
from headrace_server.trainers.compile_record import CompileRecord
from headrace_server.trainers.compiling import Compiling, Rescue
from headrace_server.trainers.loop import Outcome
from headrace_server.trainers.recipe import Compilation, Recipe, Steps
from headrace_server.trainers.reports import PhaseChanged, TrainerReport, WarningRaised
from tests.doubles.loop_run import PLAIN, Run
from tests.doubles.tiny_task import TinyTask

ROOT = Path(__file__).parents[2]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
RECIPE = Recipe(seed=1)


class Learner:
    """A network whose steps take as long as they are told to."""

    def __init__(self, eager_seconds: float, compiled_seconds: float) -> None:
        self.network: nn.Module = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
        self.seconds = {False: eager_seconds, True: compiled_seconds}
        self.is_compiled = False
        self.compile_seconds = 12.0
        self.now = 0.0

    def compile(self, rescue: Rescue) -> None:
        self.rescue = rescue
        self.is_compiled = True
        self.now += self.compile_seconds

    def interpret(self) -> None:
        self.is_compiled = False

    def perf_counter(self) -> float:
        return self.now


def run(
    learner: Learner,
    monkeypatch: pytest.MonkeyPatch,
    recipe: Recipe = RECIPE,
    num_steps: int = 100_000,
    ranks: int = 1,
    cache: CompileCache | None = None,
) -> list[TrainerReport]:
    """A hundred steps; the device is a GPU that needs none."""
    reports: list[TrainerReport] = []
    for module in (compiling, pace):
        monkeypatch.setattr(module, "time", learner)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H100")
    subject = Compiling(learner, recipe, GPU, num_steps, reports.append, num_ranks=ranks, cache=cache)
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


def cache_in(folder: Path) -> CompileCache:
    return CompileCache(folder / "compiled", 1 << 20)


def record_in(folder: Path) -> CompileRecord:
    return CompileRecord(folder / "compiled" / "learned.json", f"H100, torch {torch.__version__}")


def test_what_it_cost_and_gained_is_known_to_later_trainings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(Learner(0.010, 0.005), monkeypatch, cache=cache_in(tmp_path))
    short = Learner(0.010, 0.005)

    reports = run(short, monkeypatch, num_steps=10_000, cache=cache_in(tmp_path))

    assert short.is_compiled  # which the same training was not where nothing was known
    assert reports[0] == PhaseChanged(phase="compiling")
    prediction = record_in(tmp_path).predict("another network", num_layers=4)
    assert prediction.basis == "hardware"
    assert prediction.gain == pytest.approx(2.0)
    assert prediction.seconds == pytest.approx(4 * 12.005 / 2)  # two layers took 12 s and the step they were in


def test_a_network_that_gained_nothing_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(Learner(0.010, 0.012), monkeypatch, cache=cache_in(tmp_path))
    again = Learner(0.010, 0.012)

    assert run(again, monkeypatch, num_steps=10_000_000, cache=cache_in(tmp_path)) == []
    assert not again.is_compiled


def test_code_that_cannot_be_used_is_compiled_anew_once_and_then_done_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reports: list[TrainerReport] = []
    learner = Learner(0.010, 0.005)
    cache = cache_in(tmp_path)
    wanted = RECIPE.model_copy(update={"compilation": Compilation.ALWAYS})
    subject = Compiling(learner, wanted, CPU, 10, reports.append, cache=cache)
    subject.before_step(0)
    (code := tmp_path / "compiled" / "inductor" / "code.so").write_bytes(b"nonsense")

    assert learner.rescue(OSError("file too short"))
    assert not code.exists()
    assert not learner.rescue(RuntimeError("there is no compiler\nat all"))
    subject.before_step(1)
    subject.close(1)

    warning = reports[1]
    assert isinstance(warning, WarningRaised)
    assert (warning.code, warning.message) == (
        "COMPILATION_FAILED", "trained without compiled code: there is no compiler",
    )  # fmt: skip
    assert subject.is_settled


@pytest.mark.slow
@pytest.mark.timeout(600)
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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_code_is_compiled_once_and_found_by_the_next_process(tmp_path: Path) -> None:
    """Really: with the C++ compiler of this machine, in processes of their own; also after a file was damaged."""
    folder = tmp_path / "compiled"

    first, second = compile_in_a_process(folder), compile_in_a_process(folder)
    for path in (folder / "inductor").rglob("*.so"):
        path.write_bytes(b"nonsense")
    third = compile_in_a_process(folder)

    assert (first["misses"] > 0, first["hits"]) == (True, 0)
    assert (second["misses"], second["hits"] > 0) == (0, True)
    assert first["losses"] == second["losses"] == third["losses"]


def compile_in_a_process(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.doubles.compiled_run", str(folder)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    return found
