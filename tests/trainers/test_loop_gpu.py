"""The loop's promises on a GPU.  Run wherever there is one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headrace_server.precision import Precision
from headrace_server.trainers import feed
from headrace_server.trainers.arithmetic import use_algorithms
from headrace_server.trainers.checkpoint import read_checkpoint
from headrace_server.trainers.loop import Outcome
from headrace_server.trainers.recipe import Epochs, Graphs, MovingAverage, Numerics, OnNonFinite, Recipe
from headrace_server.trainers.reports import PhaseChanged, WarningRaised
from tests.doubles.loop_run import PLAIN, RECIPE, Run, same
from tests.doubles.tiny_task import TinyTask

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
GPU = torch.device("cuda")
FP32 = {"precision": Precision.FP32}


@pytest.fixture(autouse=True)
def _algorithms_of_each_test_alone() -> Iterator[None]:
    yield
    use_algorithms(deterministic=False, precision=Precision.FP32, device=GPU)


class DevicesTask(TinyTask):
    """The tiny task with augmentation on whatever device its rows are."""

    def augment(self, inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        if self._is_plain:
            return inputs
        (rows,) = inputs
        assert rows.device == generator.device
        return (rows + 0.1 * torch.randn(rows.shape, generator=generator, device=rows.device),)


def run(folder: Path, recipe: Recipe, **details: object) -> Run:
    use_algorithms(deterministic=recipe.deterministic, precision=recipe.precision, device=GPU)
    is_plain = bool(details.pop("is_plain", False))
    return Run(folder, recipe, DevicesTask(is_plain=is_plain), device=GPU, **details)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16, Precision.FP16])
@pytest.mark.parametrize("graphs", [Graphs.NEVER, Graphs.ALWAYS])
def test_every_precision_learns_with_and_without_graphs(tmp_path: Path, precision: Precision, graphs: Graphs) -> None:
    recipe = RECIPE.model_copy(update={"precision": precision, "graphs": graphs, "length": Epochs(count=12)})

    subject = run(tmp_path, recipe)

    assert subject.go() is Outcome.COMPLETED
    assert subject.loop.best.metrics["accuracy"] > 0.8
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in subject.weights.values())
    assert not [report for report in subject.reports if isinstance(report, WarningRaised)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"micro_batches": 2},
        {"precision": Precision.FP16, "max_gradient_norm": 0.5},
        {"precision": Precision.BF16, "moving_average": MovingAverage(decay=0.9)},
        {"numerics": Numerics(on_non_finite=OnNonFinite.SKIP), "channels_last": False},
    ],
)
def test_recorded_steps_are_the_steps_that_they_replace(tmp_path: Path, changes: dict[str, object]) -> None:
    """With dropout, batch statistics and a smaller last batch: 37 rows in batches of 8."""
    recipe = RECIPE.model_copy(update={**FP32, "deterministic": True, **changes})

    plain = run(tmp_path / "1", recipe.model_copy(update={"graphs": Graphs.NEVER}))
    recorded = run(tmp_path / "2", recipe.model_copy(update={"graphs": Graphs.ALWAYS}))
    outcomes = [plain.go(), recorded.go()]

    assert outcomes == [Outcome.COMPLETED] * 2
    phases = [report.phase for report in recorded.reports if isinstance(report, PhaseChanged)]
    assert phases == ["capturing", "training"]
    for name, tensor in plain.weights.items():
        torch.testing.assert_close(recorded.weights[name], tensor, rtol=1e-5, atol=1e-6)
    assert [report.step for report in recorded.evaluations] == [report.step for report in plain.evaluations]


def test_a_loss_that_asks_the_device_is_not_recorded_and_it_is_said_why(tmp_path: Path) -> None:
    def curious(outputs: Tensor, targets: Tensor) -> Tensor:
        loss = torch.nn.functional.cross_entropy(outputs, targets)
        return loss if loss.item() < 1e9 else loss * 2

    recipe = PLAIN.model_copy(update={**FP32, "graphs": Graphs.ALWAYS})
    asked = Run(tmp_path / "1", recipe, TinyTask(is_plain=True, loss_of=curious), device=GPU)
    plain = Run(tmp_path / "2", recipe.model_copy(update={"graphs": Graphs.NEVER}), TinyTask(is_plain=True), device=GPU)

    assert [asked.go(), plain.go()] == [Outcome.COMPLETED] * 2
    (warning,) = [report for report in asked.reports if isinstance(report, WarningRaised)]
    assert warning.code == "GRAPHS_REFUSED"
    for name, tensor in plain.weights.items():
        torch.testing.assert_close(asked.weights[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("graphs", [Graphs.NEVER, Graphs.ALWAYS])
@pytest.mark.parametrize("stop_after", [1, 6, 11])
def test_a_checkpoint_goes_on_with_the_same_bits(tmp_path: Path, graphs: Graphs, stop_after: int) -> None:
    """The stops lie between steps and, with two micro-batches, in the middle of one."""
    recipe = RECIPE.model_copy(
        update={"precision": Precision.FP16, "deterministic": True, "micro_batches": 2, "graphs": graphs}
    )
    whole = run(tmp_path / "whole", recipe)
    whole.go()

    first = run(tmp_path / "1", recipe, stop_after=stop_after)
    assert first.go() is Outcome.STOPPED
    folder = Path(first.checkpoints[-1].folder)
    second = run(tmp_path / "2", recipe, resume_from=folder)
    assert second.go() is Outcome.COMPLETED

    assert all(tensor.device.type == "cpu" for tensor in read_checkpoint(folder).tensors.values())
    assert same(second.weights, whole.weights)


def test_rows_that_do_not_fit_the_device_come_through_page_locked_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPE.model_copy(update={**FP32, "deterministic": True})
    on_device = run(tmp_path / "1", recipe)
    assert not on_device.loop._training.fetches_ahead
    monkeypatch.setattr(feed, "_SHARE_OF_FREE_MEMORY", 0.0)
    fetched = run(tmp_path / "2", recipe)
    assert fetched.loop._training.fetches_ahead

    assert [on_device.go(), fetched.go()] == [Outcome.COMPLETED] * 2

    assert same(fetched.weights, on_device.weights)
    assert set(fetched.steps[-1].step_seconds) >= {"data", "transfer", "forward", "backward", "optimizer"}
