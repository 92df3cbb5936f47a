"""The loop's promises, on a network of a few dozen weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headrace_server.errors import InvalidSpec
from headrace_server.precision import Precision
from headrace_server.trainers.checkpoint import read_checkpoint
from headrace_server.trainers.loop import Outcome
from headrace_server.trainers.recipe import (
    EarlyStopping,
    Epochs,
    Evaluation,
    MovingAverage,
    Steps,
)
from tests.doubles.loop_run import PLAIN, RECIPE, Run, same
from tests.doubles.tiny_task import TinyTask


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    first, second = Run(tmp_path / "1"), Run(tmp_path / "2")
    other = Run(tmp_path / "3", RECIPE.model_copy(update={"seed": 6}))

    outcomes = [run.go() for run in (first, second, other)]

    assert outcomes == [Outcome.COMPLETED] * 3
    assert same(first.weights, second.weights)
    assert not same(first.weights, other.weights)
    assert [report.metrics for report in first.evaluations] == [report.metrics for report in second.evaluations]


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


def test_an_unknown_metric_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="'f1' is not one of accuracy, loss"):
        Run(tmp_path, RECIPE.model_copy(update={"evaluation": Evaluation(metric="f1")}))


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_reduced_precision_learns_too(tmp_path: Path, precision: Precision) -> None:
    run = Run(tmp_path, RECIPE.model_copy(update={"precision": precision, "length": Epochs(count=12)}))

    run.go()

    assert run.loop.best.metrics["accuracy"] > 0.8
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in run.weights.values())
