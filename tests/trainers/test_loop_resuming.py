"""A training that stops somewhere and goes on later, or begins with given weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

from headrace_server.errors import InvalidSpec
from headrace_server.precision import Precision
from headrace_server.trainers.checkpoint import read_checkpoint
from headrace_server.trainers.failures import TrainingFailure
from headrace_server.trainers.loop import Outcome
from headrace_server.trainers.recipe import (
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
    EvaluationCompleted,
    WarningRaised,
)
from tests.doubles.loop_run import PLAIN, RECIPE, Run, same, sometimes_infinite
from tests.doubles.tiny_task import TinyTask


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@settings(max_examples=25, deadline=None)
@given(
    recipe=st.sampled_from(RECIPES),
    stops=st.lists(st.integers(0, 30), min_size=1, max_size=3),
    is_filed=st.booleans(),
)
def test_a_training_stopped_anywhere_and_resumed_ends_with_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, stops: list[int], is_filed: bool
) -> None:
    """Anywhere: also between two micro-batches of a step, and after steps that were left out.

    Where rows are read ahead from a file, the training that is stopped reads them, and the other one does not.
    """
    folder = tmp_path_factory.mktemp("run")
    leaves_out = recipe.numerics.on_non_finite is not OnNonFinite.STOP
    loss_of = sometimes_infinite if leaves_out else None
    task = TinyTask(loss_of=loss_of, is_filed=is_filed)
    uninterrupted = Run(folder / "whole", recipe, TinyTask(loss_of=loss_of))
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


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    first = Run(tmp_path / "1", stop_after=3)
    first.go()

    with pytest.raises(TrainingFailure, match="had 37 rows, this one has 36 rows"):
        Run(tmp_path / "2", task=TinyTask(num_rows=36), resume_from=Path(first.checkpoints[-1].folder))
