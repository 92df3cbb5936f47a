"""Our optimizers call the same kernels as torch's own, so the results must be equal to the last bit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from headrace_server.trainers.optimizers import LossScale, make_optimizer
from headrace_server.trainers.recipe import AdamW, Sgd


def gradients_of(net: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in net.parameters() if parameter.grad is not None]


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def loss_of(net: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    outputs: Tensor = net(torch.randn((8, 6), generator=generator))
    return outputs.square().mean()


@pytest.mark.parametrize(
    ("recipe", "reference"),
    [
        (AdamW(weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True)),
        (
            Sgd(momentum=0.9, weight_decay=0.01),
            lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.01, nesterov=True, fused=True),
        ),
        (Sgd(momentum=0.0), lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.0005, fused=True)),
    ],
)
def test_steps_are_bit_for_bit_those_of_torch(
    recipe: AdamW | Sgd, reference: Callable[..., torch.optim.Optimizer]
) -> None:
    ours, theirs = network(), network()
    optimizer = make_optimizer(recipe, ours)
    torch_optimizer = reference(theirs.parameters())

    for step in range(20):
        torch.autograd.backward(loss_of(ours, step))
        optimizer.step(0.01)
        torch_optimizer.zero_grad()
        torch.autograd.backward(loss_of(theirs, step))
        torch_optimizer.step()

    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.grad is None


def test_a_parameter_without_a_gradient_stays_as_it_is() -> None:
    net = network()
    net.add_module("unused", nn.Linear(2, 2))
    before = net.get_submodule("unused").state_dict()["weight"].clone()
    optimizer = make_optimizer(AdamW(weight_decay=1.0), net)

    loss = net[2](net[1](net[0](torch.ones(1, 6)))).sum()
    torch.autograd.backward(loss)
    optimizer.step(0.1)

    assert torch.equal(net.get_submodule("unused").state_dict()["weight"], before)
    assert optimizer.state["optimizer.step.unused.weight"] == 0
    assert optimizer.state["optimizer.step.0.weight"] == 1


def test_a_frozen_parameter_has_no_state() -> None:
    net = network()
    net[0].requires_grad_(False)

    state = make_optimizer(AdamW(), net).state

    assert sorted(state) == sorted(
        f"optimizer.{group}.2.{name}" for group in ("exp_avg", "exp_avg_sq", "step") for name in ("weight", "bias")
    )


def test_an_overflow_halves_the_scale_and_skips_the_step() -> None:
    net = network()
    optimizer, scale = make_optimizer(AdamW(), net), LossScale(torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    torch.autograd.backward(scale.scale(loss_of(net, 0)))
    weight = net.get_parameter("0.weight")
    weight.grad = torch.full_like(weight, float("inf"))
    found_inf = scale.unscale(gradients_of(net))
    optimizer.step(0.1, found_inf)

    assert found_inf == 1
    assert scale.state["loss_scale"] == 32768
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert optimizer.state["optimizer.step.0.weight"] == 0


def test_scaled_gradients_come_out_as_they_were() -> None:
    net, plain = network(), network()
    scale = LossScale(torch.device("cpu"))

    torch.autograd.backward(scale.scale(loss_of(net, 0)))
    found_inf = scale.unscale(gradients_of(net))
    torch.autograd.backward(loss_of(plain, 0))

    assert found_inf == 0
    for one, other in zip(net.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad)
