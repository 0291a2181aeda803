"""The fixed-point inverse: a status for each sample, and gradients by the implicit theorem."""

import pytest
import torch
from torch import Tensor, nn

from cflow.errors import DomainError, SolverError
from cflow.nets import LipschitzMLP
from cflow.testing import peak_bytes
from cflow.transport import FixedPoint
from cflow.transport.contraction import _Past, implicit


def steep(x: Tensor, context: Tensor | None = None) -> Tensor:
    """A contraction for small entries only: slope 0.5 near zero, 3 where |x| > 1."""
    return 0.5 * x + 2.5 * torch.where(x.abs() > 1, x - x.sign(), 0.0)


def test_samples_leave_when_they_have_arrived() -> None:
    rates = torch.tensor([[0.01], [0.5], [0.95], [0.0]])
    calls: list[int] = []

    def g(x: Tensor, context: Tensor | None) -> Tensor:
        assert context is not None
        calls.append(len(x))
        return context * x

    arrival = FixedPoint(1e-10, depth=0).solve(g, torch.ones(4, 2), rates)
    assert bool(arrival.arrived.all())
    assert torch.allclose(arrival.x, 1 / (1 + rates).expand(4, 2), rtol=0, atol=1e-8)
    assert calls[0] == 4
    assert calls[-1] == 1, "the slow sample iterates alone"
    assert sum(calls) == arrival.steps.sum()
    steps = arrival.steps.tolist()
    assert steps[3] < steps[0] < steps[1] < steps[2]
    assert torch.allclose(arrival.slope, rates[:, 0], rtol=0, atol=1e-5)


def test_the_residual_is_that_of_the_point_and_within_tolerance() -> None:
    net = LipschitzMLP(3, hidden_features=(16,), coefficient=0.97)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    y = torch.randn(20, 3) * 10.0 ** torch.arange(-4.0, 6.0).repeat(2)[:, None]
    arrival = FixedPoint(1e-9).solve(net, y)
    with torch.no_grad():
        gap = (arrival.x + net(arrival.x) - y).abs().amax(-1)
        gap = gap / (1 + torch.maximum(y.abs().amax(-1), arrival.x.abs().amax(-1)))
    assert torch.allclose(gap, arrival.residual, rtol=1e-3, atol=1e-15)
    assert bool((gap <= 1.001e-9).all())


def test_a_sample_that_does_not_arrive_is_named() -> None:
    y = torch.tensor([[0.3, 0.2], [5.0, 0.1], [0.1, 0.1], [-9.0, 0.0]])
    inverse = FixedPoint(1e-8)
    arrival = inverse.solve(steep, y)
    assert arrival.arrived.tolist() == [True, False, True, False]
    assert arrival.slope[1] > 2
    with pytest.raises(SolverError, match=r"2 of 4 samples did not arrive; sample 1 has a resid"):
        inverse.expect_arrival("here", arrival)
    with pytest.raises(SolverError, match="Lipschitz constant"):
        inverse.expect_arrival("here", arrival)


def test_steps_that_run_out_are_counted() -> None:
    arrival = FixedPoint(1e-12, max_steps=5, depth=0).solve(lambda x, _: 0.9 * x, torch.ones(2, 2))
    assert arrival.arrived.tolist() == [False, False]
    assert arrival.steps.tolist() == [5, 5]


@pytest.mark.parametrize("size", [1, 2, 16])
def test_acceleration_finds_the_same_points_in_far_fewer_steps(size: int) -> None:
    net = LipschitzMLP(size, hidden_features=(32,), coefficient=0.98)
    optimizer, y = torch.optim.Adam(net.parameters(), lr=1e-2), torch.randn(64, size)
    for _ in range(150):  # press the map against its bound, where the plain iteration is slow
        optimizer.zero_grad()
        (net(y) + 2 * y).square().mean().backward()
        optimizer.step()
    g = net.prepared()
    plain = FixedPoint(1e-9, depth=0, max_steps=5000).solve(lambda x, _: -g(x, None), y)
    quick = FixedPoint(1e-9).solve(lambda x, _: -g(x, None), y)
    assert bool(plain.arrived.all())
    assert bool(quick.arrived.all())
    assert torch.allclose(quick.x, plain.x, rtol=0, atol=1e-6)
    assert quick.steps.double().mean() < 0.4 * plain.steps.double().mean()


def test_acceleration_that_misleads_gives_way_to_plain_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Let the combination be noise: the solve takes few more steps than without it."""
    g, y = Stretch(), torch.randn(50, 3)
    plain = FixedPoint(1e-10, depth=0).solve(g, y)
    monkeypatch.setattr(
        _Past, "combined", lambda self, image, step: image + 9 * torch.randn_like(image)
    )
    misled = FixedPoint(1e-10).solve(g, y)
    assert bool(misled.arrived.all())
    assert torch.allclose(misled.x, plain.x, rtol=0, atol=1e-8)
    # Within N plain steps there are log2 N failures; an early one that improves by luck may add.
    assert bool((misled.steps <= plain.steps + 2 * plain.steps.double().log2() + 4).all())
    assert bool((misled.steps > plain.steps).all())


@pytest.mark.parametrize("size", [2, 5])
def test_slopes_that_jump_are_no_obstacle(size: int) -> None:
    """A contraction whose slope jumps between 0.97 and -0.97."""
    turn = torch.linalg.qr(torch.randn(size, size)).Q

    def g(x: Tensor, context: Tensor | None) -> Tensor:
        return 0.97 * (((8 * x @ turn.T + 1) % 4 - 2).abs() - 1) @ turn / 8

    y = 3 * torch.randn(500, size)
    arrival = FixedPoint(1e-10).solve(g, y)
    assert bool(arrival.arrived.all())
    assert (arrival.x + g(arrival.x, None) - y).abs().max() < 1e-8
    assert arrival.slope.max() <= 0.97 + 1e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_points_that_are_not_finite_do_not_arrive_and_stop_at_once(bad: float) -> None:
    arrival = FixedPoint().solve(steep, torch.tensor([[bad, 0.0], [0.5, 0.0]]))
    assert arrival.arrived.tolist() == [False, True]
    assert arrival.steps[0] == 1


def test_a_solve_does_not_depend_on_batch_mates_nor_write_into_the_points() -> None:
    y = torch.randn(6, 3)
    before, net = y.clone(), LipschitzMLP(3, hidden_features=(8,))
    together = FixedPoint(1e-8).solve(net, y)
    assert torch.equal(y, before)
    for k in range(6):
        alone = FixedPoint(1e-8).solve(net, y[k : k + 1])
        assert torch.allclose(alone.x[0], together.x[k], rtol=0, atol=1e-14)
        assert alone.steps[0] == together.steps[k]


class Stretch(nn.Module):
    """g = tanh(x A') / 2 + c, whose inverse gives its own Jacobian."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.linalg.qr(torch.randn(3, 3)).Q * 1.6)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        return torch.tanh(x @ self.matrix.T) / 2 + (0 if context is None else context)


def test_implicit_gradients_are_those_of_the_unrolled_iteration() -> None:
    g = Stretch()
    y, context = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    inverse, weights = FixedPoint(1e-14), torch.randn(4, 3)
    leaves = (y, context, g.matrix)
    x = implicit(inverse, g, y, context, inverse.solve(g, y, context).x)
    found = torch.autograd.grad((x * weights).sum(), leaves)
    unrolled = y
    for _ in range(400):
        unrolled = y - g(unrolled, context)
    expected = torch.autograd.grad((unrolled * weights).sum(), leaves)
    assert torch.allclose(x, unrolled, rtol=0, atol=1e-13)
    for here, there in zip(found, expected, strict=True):
        assert torch.allclose(here, there, rtol=0, atol=1e-11)
        assert there.abs().max() > 0.1


def test_backward_says_when_it_does_not_converge() -> None:
    y = torch.randn(4, 3, requires_grad=True)
    x = implicit(FixedPoint(1e-12, max_steps=3), Stretch(), y, None, y.detach())
    with pytest.raises(SolverError, match="pull, backward: 4 of 4 samples did not arrive"):
        x.sum().backward()


@pytest.mark.unchecked
def test_memory_of_a_gradient_does_not_grow_with_the_steps() -> None:
    g, y = Stretch(), torch.randn(64, 3, requires_grad=True)

    def run(tolerance: float) -> None:
        inverse = FixedPoint(tolerance)
        implicit(inverse, g, y, None, inverse.solve(g, y).x).sum().backward()

    few, many = peak_bytes(lambda: run(1e-4)), peak_bytes(lambda: run(1e-14))
    assert many <= 1.1 * few


def test_bad_settings_are_refused_in_words() -> None:
    with pytest.raises(DomainError, match="FixedPoint: tolerance must be positive"):
        FixedPoint(0.0)
    with pytest.raises(DomainError, match="max_steps must be at least 1 and depth at least 0"):
        FixedPoint(max_steps=0)
