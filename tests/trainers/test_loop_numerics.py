"""What becomes of losses, gradients and weights that are not finite."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headrace_server.trainers.failures import Diverged
from headrace_server.trainers.loop import Outcome
from headrace_server.trainers.recipe import (
    CheckpointPolicy,
    ConstantSchedule,
    Evaluation,
    Numerics,
    OnNonFinite,
)
from headrace_server.trainers.reports import WarningRaised
from tests.doubles.loop_run import PLAIN, RECIPE, Run, sometimes_infinite
from tests.doubles.tiny_task import TinyTask

NUM_REHEARSED = 2  # passes before the first step, which see how much memory rows take


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@pytest.mark.parametrize("bad", [1, 2, 4, 17])
def test_a_loss_that_is_not_finite_fails_with_its_step_and_the_loss_before_and_writes_no_checkpoint(
    tmp_path: Path, bad: int
) -> None:
    losses: list[float] = []

    def explode(outputs: Tensor, targets: Tensor) -> Tensor:
        loss = torch.nn.functional.cross_entropy(outputs, targets)
        losses.append(loss.item())
        is_bad = len(losses) == NUM_REHEARSED + bad
        return loss * float("nan") if is_bad else loss

    never = CheckpointPolicy(period_seconds=3600)
    recipe = PLAIN.model_copy(update={"checkpoints": never, "evaluation": Evaluation(every_epochs=100)})
    run = Run(tmp_path, recipe, task=TinyTask(loss_of=explode))

    with pytest.raises(Diverged, match=f"nan at step {bad}[;]") as failure:
        run.go()
    if bad > 1:
        assert f"the last finite loss was {losses[NUM_REHEARSED + bad - 2]:.6g};" in str(failure.value)
    assert failure.value.metadata["step"] == str(bad)
    assert run.checkpoints == []


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    def infinite_slope(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs * 0).abs().sqrt().sum() + 1  # the value is 1, the gradient is NaN

    run = Run(tmp_path, task=TinyTask(loss_of=infinite_slope), stop_after=1)

    with pytest.raises(Diverged, match="weight is not finite at step 1"):
        run.go()
    assert list(tmp_path.iterdir()) == []
