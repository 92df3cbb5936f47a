"""What happens to gradients between the backward pass and the optimizer."""

import pytest
import torch
from torch import Tensor, nn

from headrace_server.trainers.gradients import Gradients
from headrace_server.trainers.moving_average import MovingAverage, trained_parameters
from headrace_server.trainers.recipe import Numerics, OnNonFinite

CPU = torch.device("cpu")
SKIP = Numerics(on_non_finite=OnNonFinite.SKIP)
ONE = torch.ones(())


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def backward(net: nn.Module, factor: float = 1.0) -> None:
    torch.autograd.backward(net(torch.randn(5, 3, generator=torch.Generator().manual_seed(2))).square().sum() * factor)


def gradients_of(net: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("max_norm", [0.1, 1e9])
def test_gradients_are_clipped_as_torch_clips_them(max_norm: float) -> None:
    ours, theirs = network(), network()
    backward(ours)
    backward(theirs)
    gradients = Gradients(ours, list(ours.parameters()), CPU, max_norm=max_norm)

    found_inf = gradients.finish(ONE)
    norm = nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)

    assert found_inf is None
    assert gradients.norm is not None
    torch.testing.assert_close(gradients.norm, norm)
    for one, other in zip(gradients_of(ours), gradients_of(theirs), strict=True):
        torch.testing.assert_close(one, other)


def test_what_needs_no_norm_computes_none() -> None:
    net = network()
    backward(net)
    gradients = Gradients(net, list(net.parameters()), CPU)

    assert gradients.finish(ONE) is None
    assert gradients.norm is None
    assert gradients.state == {}


@pytest.mark.parametrize(("factor", "loss"), [(float("nan"), ONE), (float("inf"), ONE), (1.0, ONE * float("nan"))])
def test_a_step_that_is_left_out_leaves_no_trace_in_running_statistics(factor: float, loss: Tensor) -> None:
    net = network()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    gradients = Gradients(net, list(net.parameters()), CPU, numerics=SKIP)

    gradients.begin()
    backward(net, factor)
    found_inf = gradients.finish(loss)

    assert found_inf == 1
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    assert gradients.guard is not None
    assert gradients.guard.read() == (1, 1)


def test_runs_of_left_out_steps_are_counted_and_end() -> None:
    net = network()
    gradients = Gradients(net, list(net.parameters()), CPU, numerics=SKIP)
    guard = gradients.guard
    assert guard is not None

    for factor in (float("nan"), float("nan"), 1.0, float("nan")):
        gradients.begin()
        net.zero_grad()
        backward(net, factor)
        gradients.finish(ONE)

    assert guard.read() == (3, 2)
    assert guard.rate_share == 1


def test_the_average_follows_closely_at_first_and_slowly_later() -> None:
    net = nn.Linear(1, 1, bias=False)
    weight = net.weight
    average = MovingAverage(trained_parameters(net), decay=0.5)

    with torch.no_grad():
        weight.fill_(1.0)
    average.state["average.weight"].zero_()
    average.update(0)  # keeps a tenth
    early = average.state["average.weight"].item()
    average.state["average.weight"].zero_()
    average.update(1000)  # keeps a half
    late = average.state["average.weight"].item()

    assert [early, late] == pytest.approx([0.9, 0.5])


def test_the_average_takes_the_place_of_the_weights_for_a_while() -> None:
    net = nn.Linear(2, 2)
    before = net.weight.detach().clone()
    average = MovingAverage(trained_parameters(net), decay=0.9)
    average.state["average.weight"].fill_(7.0)

    with average.in_place():
        meanwhile = net.weight.detach().clone()

    assert meanwhile.eq(7.0).all()
    assert torch.equal(net.weight, before)


def test_the_average_leaves_out_what_the_optimizer_left_out() -> None:
    net = nn.Linear(2, 2)
    average = MovingAverage(trained_parameters(net), decay=0.9)
    before = {name: tensor.clone() for name, tensor in average.state.items()}
    with torch.no_grad():
        net.weight.add_(1.0)

    average.update(3, found_inf=torch.ones(()))
    kept = {name: tensor.clone() for name, tensor in average.state.items()}
    average.update(3, found_inf=torch.zeros(()))

    assert all(torch.equal(kept[name], before[name]) for name in before)
    assert not torch.equal(average.state["average.weight"], before["average.weight"])
