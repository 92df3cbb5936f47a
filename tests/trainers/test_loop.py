"""The loop's promises, on a network of a few dozen weights."""

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headrace_server.errors import InvalidSpec
from headrace_server.precision import Precision
from headrace_server.trainers.checkpoint import read_checkpoint
from headrace_server.trainers.checkpoint_writer import CheckpointWriter
from headrace_server.trainers.failures import Diverged, TrainingFailure
from headrace_server.trainers.loop import Loop, Outcome
from headrace_server.trainers.profiling import Profiling
from headrace_server.trainers.recipe import (
    AdamW,
    ConstantSchedule,
    EarlyStopping,
    Epochs,
    Evaluation,
    LinearSchedule,
    MovingAverage,
    Numerics,
    OnNonFinite,
    Recipe,
    Sgd,
    Steps,
)
from headrace_server.trainers.reports import (
    CheckpointWritten,
    EvaluationCompleted,
    StepCompleted,
    TrainerReport,
    WarningRaised,
)
from headrace_server.trainers.yielding import Yielding
from tests.doubles.tiny_task import TinyTask

CPU = torch.device("cpu")
RECIPE = Recipe(length=Epochs(count=4), batch_size=8, optimizer=AdamW(learning_rate=0.01), seed=5)
PLAIN = RECIPE.model_copy(update={"schedule": ConstantSchedule()})


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class StopAt(threading.Event):
    """An event that is set when it has been looked at `num_looks` times; the loop looks once before each step."""

    def __init__(self, num_looks: int | None) -> None:
        super().__init__()
        self._num_looks = num_looks

    def is_set(self) -> bool:
        if self._num_looks is None:
            return False
        self._num_looks -= 1
        return self._num_looks < 0


class Run:
    """One loop with all that it said and left."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe = RECIPE,
        task: TinyTask | None = None,
        stop_after: int | None = None,
        resume_from: Path | None = None,
        versions: dict[str, str] | None = None,
        yielding: Yielding | None = None,
        profiling: Callable[[Callable[[TrainerReport], None]], Profiling] | None = None,
    ) -> None:
        self.reports: list[TrainerReport] = []
        torch.manual_seed(recipe.seed)
        task = task or TinyTask()
        self.network = task.make_network()
        self.writer = CheckpointWriter(folder, self.reports.append)
        self.loop = Loop(
            task,
            self.network,
            recipe,
            device=CPU,
            report=self.reports.append,
            checkpoints=self.writer,
            stop=StopAt(stop_after),
            versions=versions,
            yielding=yielding,
            profiling=profiling and profiling(self.reports.append),
        )
        if resume_from is not None:
            self.loop.restore(read_checkpoint(resume_from))

    def go(self) -> Outcome:
        try:
            return self.loop.run()
        finally:
            self.writer.close()

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.network.state_dict().items()}

    @property
    def checkpoints(self) -> list[CheckpointWritten]:
        return [report for report in self.reports if isinstance(report, CheckpointWritten)]

    @property
    def steps(self) -> list[StepCompleted]:
        return [report for report in self.reports if isinstance(report, StepCompleted)]

    @property
    def evaluations(self) -> list[EvaluationCompleted]:
        return [report for report in self.reports if isinstance(report, EvaluationCompleted)]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    first, second = Run(tmp_path / "1"), Run(tmp_path / "2")
    other = Run(tmp_path / "3", RECIPE.model_copy(update={"seed": 6}))

    outcomes = [run.go() for run in (first, second, other)]

    assert outcomes == [Outcome.COMPLETED] * 3
    assert same(first.weights, second.weights)
    assert not same(first.weights, other.weights)
    assert [report.metrics for report in first.evaluations] == [report.metrics for report in second.evaluations]


RECIPES = [
    RECIPE,
    RECIPE.model_copy(update={"length": Steps(count=17), "optimizer": Sgd()}),
    RECIPE.model_copy(update={"precision": Precision.FP16, "evaluation": Evaluation(every_epochs=3, metric="loss")}),
    RECIPE.model_copy(update={"length": Epochs(count=9), "early_stopping": EarlyStopping(patience=2, min_delta=0.05)}),
    RECIPE.model_copy(
        update={"micro_batches": 3, "moving_average": MovingAverage(decay=0.9), "schedule": LinearSchedule()}
    ),
    RECIPE.model_copy(
        update={
            "micro_batches": 4,
            "precision": Precision.FP16,
            "max_gradient_norm": 0.5,
            "numerics": Numerics(on_non_finite=OnNonFinite.LOWER_RATE),
            "deterministic": True,
        }
    ),
]


def sometimes_infinite(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that some batches of the tiny task, and always the same ones, make infinite."""
    loss = torch.nn.functional.cross_entropy(outputs, targets)
    return loss / (targets.sum() != 5)


@settings(max_examples=25, deadline=None)
@given(recipe=st.sampled_from(RECIPES), stops=st.lists(st.integers(0, 30), min_size=1, max_size=3))
def test_a_training_stopped_anywhere_and_resumed_ends_with_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, stops: list[int]
) -> None:
    """Anywhere: also between two micro-batches of a step, and after steps that were left out."""
    folder = tmp_path_factory.mktemp("run")
    leaves_out = recipe.numerics.on_non_finite is not OnNonFinite.STOP
    task = TinyTask(loss_of=sometimes_infinite if leaves_out else None)
    uninterrupted = Run(folder / "whole", recipe, task)
    uninterrupted.go()

    resume_from: Path | None = None
    steps: list[int] = []
    evaluations: list[EvaluationCompleted] = []
    for number, stop_after in enumerate([*stops, None]):
        run = Run(folder / str(number), recipe, task, stop_after, resume_from)
        outcome = run.go()
        steps += [report.step for report in run.steps]
        evaluations += run.evaluations
        if run.checkpoints:
            resume_from = Path(run.checkpoints[-1].folder)
        if outcome is Outcome.COMPLETED:
            break

    assert outcome is Outcome.COMPLETED
    assert same(run.weights, uninterrupted.weights)
    assert same(dict(run.loop.best.weights), dict(uninterrupted.loop.best.weights))
    assert run.loop.best.metrics == uninterrupted.loop.best.metrics
    assert run.loop.best.step == uninterrupted.loop.best.step
    assert [(e.step, e.metrics, e.is_best) for e in evaluations] == [
        (e.step, e.metrics, e.is_best) for e in uninterrupted.evaluations
    ]
    assert steps == sorted(set(steps))
    assert steps[-1] == uninterrupted.steps[-1].step
    assert run.steps[-1].skipped_steps == uninterrupted.steps[-1].skipped_steps


def test_a_stop_between_two_micro_batches_is_obeyed_at_once(tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"micro_batches": 4})

    run = Run(tmp_path, recipe, stop_after=6)  # a look before each step, and before each but the first micro-batch

    assert run.go() is Outcome.STOPPED
    values = read_checkpoint(Path(run.checkpoints[-1].folder)).values
    assert (values.step, values.rows_done) == (1, 4)


@pytest.mark.parametrize("micro_batches", [2, 3, 8])
def test_micro_batches_make_the_step_of_the_whole_batch(tmp_path: Path, micro_batches: int) -> None:
    whole = Run(tmp_path / "1", PLAIN, TinyTask(is_plain=True))
    parts = Run(tmp_path / "2", PLAIN.model_copy(update={"micro_batches": micro_batches}), TinyTask(is_plain=True))

    whole.go()
    parts.go()

    for name, tensor in whole.weights.items():
        torch.testing.assert_close(parts.weights[name], tensor, rtol=1e-5, atol=1e-6)
    assert parts.steps[0].step == whole.steps[0].step == 1
    assert parts.steps[0].loss == pytest.approx(whole.steps[0].loss, rel=1e-5)


def test_the_averaged_weights_are_evaluated_and_exported_and_the_others_are_trained(tmp_path: Path) -> None:
    plain = Run(tmp_path / "1", PLAIN, TinyTask(is_plain=True))
    averaged = Run(
        tmp_path / "2",
        PLAIN.model_copy(update={"moving_average": MovingAverage(), "evaluation": Evaluation(metric="loss")}),
        TinyTask(is_plain=True),
    )

    plain.go()
    averaged.go()

    assert same(plain.weights, averaged.weights)
    checkpoint = read_checkpoint(Path(averaged.checkpoints[-1].folder))
    assert averaged.loop.best.step == 20
    assert checkpoint.best_weights is not None
    assert same(dict(checkpoint.best_weights), dict(averaged.loop.best.weights))
    for name in ("0.weight", "2.bias"):
        assert torch.equal(averaged.loop.best.weights[name], checkpoint.tensors[f"average.{name}"])
        assert not torch.equal(averaged.loop.best.weights[name], averaged.weights[name])


@pytest.mark.parametrize("on_non_finite", [OnNonFinite.SKIP, OnNonFinite.LOWER_RATE])
def test_steps_that_are_not_finite_are_left_out_and_told(tmp_path: Path, on_non_finite: OnNonFinite) -> None:
    numerics = Numerics(on_non_finite=on_non_finite)
    recipe = RECIPE.model_copy(update={"numerics": numerics, "schedule": ConstantSchedule()})

    run = Run(tmp_path, recipe, TinyTask(loss_of=sometimes_infinite))

    assert run.go() is Outcome.COMPLETED
    skipped = run.steps[-1].skipped_steps
    assert 0 < skipped < 20
    warnings = [report for report in run.reports if isinstance(report, WarningRaised)]
    assert {warning.code for warning in warnings} == {"STEPS_SKIPPED"}
    assert "left out: the loss or the gradient was not finite" in warnings[-1].message
    assert all(tensor.isfinite().all() for tensor in run.weights.values())
    assert all(math.isfinite(report.loss) for report in run.steps[1:])
    expected = 0.01 * 0.5**skipped if on_non_finite is OnNonFinite.LOWER_RATE else 0.01
    assert run.steps[-1].learning_rate == pytest.approx(expected)


def test_a_training_that_only_leaves_out_steps_fails(tmp_path: Path) -> None:
    numerics = Numerics(on_non_finite=OnNonFinite.SKIP, max_skipped_in_a_row=3)
    task = TinyTask(loss_of=lambda outputs, _: outputs.sum() * float("nan"))

    run = Run(tmp_path, RECIPE.model_copy(update={"numerics": numerics}), task)

    with pytest.raises(Diverged, match="steps in a row had no finite loss"):
        run.go()


def test_another_environment_is_told_when_a_training_is_resumed(tmp_path: Path) -> None:
    first = Run(tmp_path / "1", stop_after=3, versions={"torch": "2.13", "threads": "1"})
    first.go()

    second = Run(
        tmp_path / "2",
        resume_from=Path(first.checkpoints[-1].folder),
        versions={"torch": "2.14", "threads": "1", "cuda": "13"},
    )

    (warning,) = second.reports
    assert isinstance(warning, WarningRaised)
    assert warning.code == "ENVIRONMENT_CHANGED"
    assert "since step 3, torch 2.13 → 2.14" in warning.message


def test_a_training_may_begin_with_given_weights(tmp_path: Path) -> None:
    first = Run(tmp_path / "1", PLAIN.model_copy(update={"moving_average": MovingAverage()}), stop_after=0)
    given = {name: torch.full_like(tensor, 0.25) for name, tensor in first.weights.items()}

    first.loop.begin_with(given)

    assert same(first.weights, given)
    assert torch.equal(first.loop._learner.state(None)["average.0.weight"], given["0.weight"])


@pytest.mark.parametrize(
    ("name", "shape", "problem"),
    [
        ("0.weight", (8, 5), r"'0.weight' of the shape \[8, 4\], the start has one of the shape \[8, 5\]"),
        ("4.bias", None, r"'4.bias' of the shape \[2\], the start has none"),
    ],
)
def test_weights_of_another_network_are_refused(
    tmp_path: Path, name: str, shape: tuple[int, ...] | None, problem: str
) -> None:
    run = Run(tmp_path)
    given = run.weights
    del given[name]
    if shape is not None:
        given[name] = torch.zeros(shape)

    with pytest.raises(InvalidSpec, match=problem):
        run.loop.begin_with(given)


def test_a_completed_training_is_resumed_without_another_step(tmp_path: Path) -> None:
    first = Run(tmp_path / "1")
    first.go()

    second = Run(tmp_path / "2", resume_from=Path(first.checkpoints[-1].folder))

    assert second.go() is Outcome.COMPLETED
    assert second.reports == []
    assert same(dict(second.loop.best.weights), dict(first.loop.best.weights))


def test_a_stop_before_the_first_step_leaves_no_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path, stop_after=0)

    assert run.go() is Outcome.STOPPED
    assert run.reports == []


def test_every_row_is_seen_once_an_epoch_also_those_of_the_last_batch(tmp_path: Path) -> None:
    seen: list[int] = []

    def remember(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(len(targets))
        return torch.nn.functional.cross_entropy(outputs, targets)

    run = Run(tmp_path, task=TinyTask(num_rows=37, loss_of=remember))
    run.go()

    assert seen == [2, 4, *[8, 8, 8, 8, 5] * 4]  # two of them rehearse
    assert run.loop.num_steps == 20
    order = {
        int(row) for position in range(5) for row in run.loop._training.training_batch(5, 2, position)[0][0][:, 0] * 1e6
    }
    assert len(order) == 37


def test_progress_tells_what_was_done(tmp_path: Path) -> None:
    run = Run(tmp_path)

    run.go()

    first, last = run.steps[0], run.steps[-1]
    assert (first.step, first.epoch, first.remaining_seconds) == (1, 1, None)
    assert (last.step, last.epoch, last.fraction) == (20, 4, 1.0)
    assert last.samples_per_second > 0
    assert set(last.metrics) == {"accuracy"}
    assert set(first.step_seconds) == {"data", "forward", "backward", "optimizer"}
    assert set(last.step_seconds) >= set(first.step_seconds)
    assert 0 < last.learning_rate < 0.01
    assert [report.step for report in run.evaluations] == [5, 10, 15, 20]
    assert run.evaluations[0].is_best
    assert run.evaluations[0].num_rows == 11


def test_the_last_step_is_evaluated_when_the_length_is_in_steps(tmp_path: Path) -> None:
    run = Run(tmp_path, RECIPE.model_copy(update={"length": Steps(count=7)}))

    assert run.go() is Outcome.COMPLETED
    assert [report.step for report in run.evaluations] == [5, 7]
    assert run.steps[-1].step == 7


def test_early_stopping_ends_the_training(tmp_path: Path) -> None:
    patience = EarlyStopping(patience=2, min_delta=10.0)

    run = Run(tmp_path, RECIPE.model_copy(update={"length": Epochs(count=100), "early_stopping": patience}))

    assert run.go() is Outcome.COMPLETED
    assert len(run.evaluations) == 3
    assert run.steps[-1].fraction < 1


def test_a_loss_that_is_not_finite_fails_with_the_step_and_writes_no_checkpoint(tmp_path: Path) -> None:
    calls = iter(range(1000))

    def explode(outputs: Tensor, targets: Tensor) -> Tensor:
        loss = torch.nn.functional.cross_entropy(outputs, targets)
        return loss * float("nan") if next(calls) == 3 else loss

    run = Run(tmp_path, task=TinyTask(loss_of=explode))

    with pytest.raises(Diverged, match=r"nan at step 5; the last finite loss was 0\.\d+; the learning rate"):
        run.go()
    assert run.checkpoints == []


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    def infinite_slope(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs * 0).abs().sqrt().sum() + 1  # the value is 1, the gradient is NaN

    run = Run(tmp_path, task=TinyTask(loss_of=infinite_slope), stop_after=1)

    with pytest.raises(Diverged, match="weight is not finite at step 1"):
        run.go()
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_metric_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="'f1' is not one of accuracy, loss"):
        Run(tmp_path, RECIPE.model_copy(update={"evaluation": Evaluation(metric="f1")}))


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    first = Run(tmp_path / "1", stop_after=3)
    first.go()

    with pytest.raises(TrainingFailure, match="had 37 rows, this one has 36 rows"):
        Run(tmp_path / "2", task=TinyTask(num_rows=36), resume_from=Path(first.checkpoints[-1].folder))


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_reduced_precision_learns_too(tmp_path: Path, precision: Precision) -> None:
    run = Run(tmp_path, RECIPE.model_copy(update={"precision": precision, "length": Epochs(count=12)}))

    run.go()

    assert run.loop.best.metrics["accuracy"] > 0.8
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in run.weights.values())
