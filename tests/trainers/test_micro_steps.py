"""When micro-batches are recorded, and what becomes of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from headrace_server.trainers import pace
from headrace_server.trainers.graphs import Recordable
from headrace_server.trainers.micro_steps import MicroSteps, Passes
from headrace_server.trainers.recipe import Graphs, Recipe
from headrace_server.trainers.reports import PhaseChanged, TrainerReport, WarningRaised
from tests.doubles.tiny_task import TinyTask

GPU = torch.device("cuda")
RECIPE = Recipe(seed=1, batch_size=8, micro_batches=2)
ROWS = torch.arange(32.0).view(8, 4) / 32
TARGETS = torch.arange(8) % 2
BOTH = [PhaseChanged(phase="capturing"), PhaseChanged(phase="training")]


class Learner:
    """A plain network on the CPU; the device is a GPU that needs none."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.network: nn.Module = TinyTask(is_plain=True).make_network()

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        outputs: Tensor = self.network(*inputs)
        return outputs

    def backward(self, loss: Tensor, share: float) -> None:
        torch.autograd.backward(loss * share)

    def gradients(self) -> list[Tensor]:
        return [parameter.grad.clone() for parameter in self.network.parameters() if parameter.grad is not None]


@dataclass
class Studio:
    """Recordings that compute as they are asked to, and a clock that steps move."""

    plain_seconds: float = 0.010
    recorded_seconds: float = 0.004
    problem: str = ""
    now: float = 0.0
    num_replays: int = 0
    shapes: list[tuple[int, float]] = field(default_factory=list)

    def record(
        self,
        learner: Recordable,
        loss: Callable[[Tensor, Tensor], Tensor],
        inputs: tuple[Tensor, ...],
        targets: Tensor,
        share: float,
    ) -> "Replay":
        self.shapes.append((len(targets), share))
        if self.problem:
            raise RuntimeError(self.problem)
        return Replay(self, learner, loss, share)

    def perf_counter(self) -> float:
        return self.now


class Replay:
    def __init__(
        self, studio: Studio, learner: Recordable, loss: Callable[[Tensor, Tensor], Tensor], share: float
    ) -> None:
        self._studio, self._learner, self._loss, self._share = studio, learner, loss, share

    def replay(self, inputs: tuple[Tensor, ...], targets: Tensor, forward_done: Callable[[], None]) -> Passes:
        self._studio.num_replays += 1
        outputs = self._learner.forward(inputs)
        loss = self._loss(outputs, targets)
        forward_done()
        self._learner.backward(loss, self._share)
        return outputs, loss.detach()


class Training:
    """Steps of two micro-batches, and a last one of an epoch that is smaller."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        studio: Studio,
        recipe: Recipe = RECIPE,
        *,
        num_steps: int = 100_000,
        obstacle: str = "",
        is_static: bool = True,
        device: torch.device = GPU,
        may_watch: Callable[[], bool] = lambda: True,
    ) -> None:
        monkeypatch.setattr(pace, "time", studio)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
        self.studio, self.learner, self.reports = studio, Learner(), list[TrainerReport]()
        task = TinyTask(is_plain=True)
        task.is_static = is_static
        self.subject = MicroSteps(
            self.learner,
            task,
            recipe,
            device,
            num_steps,
            self.reports.append,
            obstacle=obstacle,
            may_watch=may_watch,
            record=studio.record,
        )
        self.subject.rows = 4
        self.num_done = 0

    def step(self, parts: tuple[int, ...] = (4, 4)) -> list[Tensor]:
        """Do one; returns its gradients."""
        self.subject.before_step(self.num_done)
        replays, begin = self.studio.num_replays, 0
        for rows in parts:
            here = slice(begin, begin + rows)
            self.subject.run((ROWS[here],), TARGETS[here], rows / sum(parts))
            begin += rows
        is_replayed = self.studio.num_replays > replays
        self.studio.now += self.studio.recorded_seconds if is_replayed else self.studio.plain_seconds
        self.num_done += 1
        gradients = self.learner.gradients()
        self.learner.network.zero_grad()
        return gradients

    def run(self, num_steps: int = 100) -> "Training":
        for _ in range(num_steps):
            self.step()
        return self


def test_small_steps_are_recorded_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(monkeypatch, Studio()).run()

    assert training.reports == BOTH
    assert training.studio.shapes == [(4, 0.5)]
    assert training.studio.num_replays == 2 * 70  # all after the thirtieth


def test_steps_that_are_large_or_few_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    large = Training(monkeypatch, Studio(plain_seconds=0.1)).run()
    few = Training(monkeypatch, Studio(), num_steps=1000).run()

    assert large.reports == few.reports == []


def test_what_is_no_faster_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(monkeypatch, Studio(recorded_seconds=0.012)).run()

    assert isinstance(warning := training.reports[-1], WarningRaised)
    assert (warning.code, warning.message) == (
        "GRAPHS_GIVEN_UP", "recorded steps take 12 ms, others 10 ms: given up",
    )  # fmt: skip
    replays = training.studio.num_replays
    training.step()
    assert training.studio.num_replays == replays


def test_a_network_that_cannot_be_recorded_is_trained_as_it_is_and_it_is_said_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = RECIPE.model_copy(update={"graphs": Graphs.ALWAYS})
    refused = Training(monkeypatch, Studio(problem="operation not permitted when stream is capturing\nmore"), recipe)
    plain = Training(monkeypatch, Studio(), RECIPE.model_copy(update={"graphs": Graphs.NEVER}))

    gradients = [refused.step(), refused.step()]

    phase, warning, other_phase = refused.reports
    assert [phase, other_phase] == BOTH
    assert isinstance(warning, WarningRaised)
    assert warning.message == (
        "micro-batches are not recorded as CUDA graphs: operation not permitted when stream is capturing"
    )
    for found in gradients:
        torch.testing.assert_close(found, plain.step(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"obstacle": "ranks meet in their passes"}, "ranks meet in their passes"),
        ({"is_static": False}, "the trainer does not say that it does the same for every batch"),
        ({"device": torch.device("cpu")}, "there is no GPU"),
    ],
)
def test_an_obstacle_is_told_to_whoever_asked_for_graphs_and_to_nobody_else(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], reason: str
) -> None:
    asked = Training(
        monkeypatch,
        Studio(),
        RECIPE.model_copy(update={"graphs": Graphs.ALWAYS}),
        **changes,  # type: ignore[arg-type]
    ).run(3)
    nobody = Training(monkeypatch, Studio(), **changes).run()  # type: ignore[arg-type]

    (warning,) = asked.reports
    assert isinstance(warning, WarningRaised)
    assert warning.code == "GRAPHS_REFUSED"
    assert warning.message.endswith(reason)
    assert nobody.reports == []
    assert asked.studio.shapes == nobody.studio.shapes == []


def test_a_deterministic_training_records_only_when_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    deterministic = RECIPE.model_copy(update={"deterministic": True})

    by_itself = Training(monkeypatch, Studio(), deterministic).run()
    asked = Training(monkeypatch, Studio(), deterministic.model_copy(update={"graphs": Graphs.ALWAYS})).run(2)

    assert by_itself.reports == []
    assert asked.reports == BOTH
    assert asked.studio.num_replays == 4  # from its first step on


def test_parts_of_another_size_are_done_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(monkeypatch, Studio(), RECIPE.model_copy(update={"graphs": Graphs.ALWAYS}))
    plain = Training(monkeypatch, Studio(), RECIPE.model_copy(update={"graphs": Graphs.NEVER}))
    training.step()

    gradients = training.step((4, 2))

    assert training.studio.num_replays == 2
    torch.testing.assert_close(gradients, plain.step((4, 2)), rtol=0, atol=0)


def test_nothing_is_recorded_over_gradients_of_a_step_half_done(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(monkeypatch, Studio(), RECIPE.model_copy(update={"graphs": Graphs.ALWAYS}))
    for parameter in training.learner.network.parameters():
        parameter.grad = torch.ones_like(parameter)  # as a checkpoint brings them

    training.step((4,))
    training.step()

    assert training.studio.shapes == [(4, 0.5)]
    assert training.studio.num_replays == 2


def test_the_pace_is_watched_only_once_it_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    is_settled = [False]
    training = Training(monkeypatch, Studio(), may_watch=lambda: is_settled[0]).run()

    assert training.reports == []
    is_settled[0] = True
    assert training.run().reports == BOTH
