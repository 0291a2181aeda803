"""Contractions stay contractions: certificates after training, slopes of activations, Jacobians."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cflow.errors import DomainError
from cflow.nets import (
    CLipSwish,
    Contraction,
    LipschitzConvNet,
    LipschitzDenseNet,
    LipschitzMLP,
    LipSwish,
)

NETS: dict[str, tuple[Callable[[], Contraction], tuple[int, ...]]] = {
    "mlp": (lambda: LipschitzMLP(3, hidden_features=(16, 16), coefficient=0.9), (3,)),
    "mlp, p = 1": (
        lambda: LipschitzMLP(3, hidden_features=(16,), coefficient=0.9, order=1.0),
        (3,),
    ),
    "mlp, p learned": (
        lambda: LipschitzMLP(
            3, hidden_features=(16,), coefficient=0.9, order=3.0, learn_order=True
        ),
        (3,),
    ),
    "convolutions": (
        lambda: LipschitzConvNet(2, hidden_channels=(6, 6), coefficient=0.9),
        (2, 4, 4),
    ),
    "dense": (lambda: LipschitzDenseNet(3, depth=3, growth=8, coefficient=0.9), (3,)),
}
nets = pytest.mark.parametrize("name", NETS)


def trained(name: str, steps: int = 50) -> tuple[Contraction, Tensor]:
    """Train g to stretch as far as it can, at a rate that throws the weights about."""
    build, event = NETS[name]
    net, x = build(), torch.randn(32, *event)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x) + 3 * x).square().mean().backward()  # wants g = -3 x
        optimizer.step()
    return net, x


@nets
def test_the_certificate_holds_after_optimiser_steps(name: str) -> None:
    net, x = trained(name)
    assert net.certificate() <= 0.9 * (1 + 1e-12)
    assert net.certificate() > 0.8, "training has not pressed against the bound"
    order = net.order if isinstance(net, LipschitzMLP) else 2.0
    other = x + torch.randn_like(x) * 10.0 ** torch.randint(-4, 2, (32, *[1] * (x.dim() - 1)))
    gap = (net(x) - net(other)).flatten(1).norm(order, dim=-1)
    assert bool((gap <= net.certificate() * (x - other).flatten(1).norm(order, dim=-1)).all())
    for point in x[:4]:
        jacobian = torch.autograd.functional.jacobian(lambda z: net(z[None])[0], point)
        matrix = jacobian.reshape(point.numel(), -1)
        assert torch.linalg.eigvals(matrix).abs().max() <= net.certificate()
        if order == 2.0:
            assert torch.linalg.matrix_norm(matrix, 2) <= net.certificate()


@nets
def test_evaluation_is_deterministic_and_changes_no_state(name: str) -> None:
    net, x = trained(name, 3)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    training, evaluation = net.train()(x), net.eval()(x)
    assert torch.equal(training, evaluation)
    assert torch.equal(net.prepared()(x, None), evaluation)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("raw", [-3.0, 0.5, 4.0])
def test_activations_have_slopes_of_at_most_one(raw: float) -> None:
    z = torch.linspace(-60, 60, 400_001).requires_grad_()
    single, pair = LipSwish(), CLipSwish()
    for activation in (single, pair):
        activation.raw.data.fill_(raw)
    (slope,) = torch.autograd.grad(single(z).sum(), z)
    assert 0.99 < slope.abs().max() <= 1
    both = pair(z[:, None])
    rows = [torch.autograd.grad(both[:, k].sum(), z, retain_graph=True)[0] for k in (0, 1)]
    assert 0.999 < torch.stack(rows).norm(dim=0).max() <= 1


def test_the_order_is_learned_and_stays_in_range() -> None:
    net, _ = trained("mlp, p learned")
    assert isinstance(net, LipschitzMLP)
    assert net.order != pytest.approx(3.0, abs=1e-3)
    assert net.order >= 1


@pytest.mark.parametrize(
    "build",
    [
        lambda: LipschitzMLP(3, context=2, hidden_features=(8,)),
        lambda: LipschitzDenseNet(3, context=2, depth=2, growth=4),
    ],
    ids=["mlp", "dense"],
)
def test_the_bound_is_in_x_alone(build: Callable[[], Contraction]) -> None:
    net, x = build(), torch.randn(8, 3)
    far = 1e3 * torch.randn(8, 2)
    change = (net(x, far) - net(x, -far)).norm(dim=-1)
    assert bool((change > 10).any()), "the context is bounded, too"
    y = x + torch.randn_like(x)
    gap = (net(x, far) - net(y, far)).norm(dim=-1)
    assert bool((gap <= net.certificate() * (x - y).norm(dim=-1)).all())


def test_bad_settings_are_refused_in_words() -> None:
    with pytest.raises(DomainError, match=r"coefficient must lie in \(0, 1\).*got 1.0"):
        LipschitzMLP(2, coefficient=1.0)
    with pytest.raises(DomainError, match=r"order must lie in \[1, inf\]"):
        LipschitzMLP(2, order=0.5)
    with pytest.raises(DomainError, match="order must lie"):
        LipschitzMLP(2, order=math.inf, learn_order=True)
    with pytest.raises(DomainError, match="growth even for CLipSwish"):
        LipschitzDenseNet(2, growth=3)
    with pytest.raises(DomainError, match="takes no context"):
        LipschitzMLP(2)(torch.zeros(1, 2), torch.zeros(1, 2))
