"""Bridges: flow and score of Schrodinger bridges between Gaussians, which are closed forms.

For x0 ~ N(a, A), x1 ~ N(b, B) the entropic plan with reg = 2 sigma^2 is normal with
Cov(x0, x1) = C = (A^1/2 D A^-1/2 - sigma^2 I) / 2, D = (4 A^1/2 B A^1/2 + sigma^4 I)^1/2 (Mallasto
et al. 2022, arXiv 2006.03416; Bunne et al. 2023, arXiv 2202.05722, theorem 3), and x_t is normal.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError
from cflow.field import MLPField
from cflow.matching import (
    BridgePath,
    BridgeProcess,
    EntropicCoupling,
    IndependentCoupling,
    PairedCoupling,
    Regression,
    bridge_error,
    bridge_matching,
    regression,
)


def root(m: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(m)
    return vectors @ values.sqrt().diag() @ vectors.T


def plan(a: Tensor, b: Tensor, sigma: float) -> Tensor:
    """Return Cov(x0, x1)."""
    h, eye = root(a), torch.eye(2)
    d = root(4 * h @ b @ h + sigma**4 * eye)
    return 0.5 * (h @ d @ torch.linalg.inv(h) - sigma**2 * eye)


class Bridge:
    """The bridge between two normal laws in the plane that do not commute."""

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma
        self.a, self.b = torch.tensor([-1.0, 0.5]), torch.tensor([1.0, 0.0])
        self.A = torch.tensor([[1.0, 0.3], [0.3, 0.5]])
        self.B = torch.tensor([[0.4, -0.2], [-0.2, 1.2]])
        self.C = plan(self.A, self.B, sigma)

    def pairs(self, n: int) -> tuple[Tensor, Tensor]:
        joint = torch.cat([torch.cat([self.A, self.C], 1), torch.cat([self.C.T, self.B], 1)])
        z = torch.randn(n, 4) @ torch.linalg.cholesky(joint).T
        return self.a + z[:, :2], self.b + z[:, 2:]

    def mean(self, t: Tensor) -> Tensor:
        return torch.lerp(self.a, self.b, t[..., None])

    def covariance(self, t: Tensor) -> Tensor:
        t = t[..., None, None]
        both = self.C + self.C.T + self.sigma**2 * torch.eye(2)
        return (1 - t) ** 2 * self.A + t**2 * self.B + t * (1 - t) * both

    def score(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return -torch.linalg.solve(self.covariance(t), x - self.mean(t))

    def field(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The forward drift, (E[x1 | x] - x) / (1 - t), less sigma^2 / 2 times the score."""
        s = t[..., None, None]
        across = (1 - s) * self.C.T + s * self.B  # Cov(x1, x_t)
        end = self.b - (across @ self.score(t, x)[..., None])[..., 0]
        return (end - x) / (1 - t[..., None]) - 0.5 * self.sigma**2 * self.score(t, x)


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_conditional_means_are_those_of_the_schrodinger_bridge(sigma: float) -> None:
    """E[(target - v(x)) g(x)] = 0, and so for the score, each against 4 functions g.

    L(f + g) - L(f - g) = 4 w (f - target) g. 16 z-values above 6: probability below 1e-7.
    """
    bridge, path, n = Bridge(sigma), BridgePath(sigma), 40_000
    x0, x1 = bridge.pairs(n)
    t = 0.02 + 0.96 * torch.rand(n)
    tests: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda t, x: torch.ones_like(x),
        lambda t, x: x * t[:, None],
        lambda t, x: x.flip(-1).tanh(),
        lambda t, x: (2 * x + t[:, None]).sin(),
    ]
    for g in tests:
        for steps in ((1, 0), (0, 1)):  # of the velocity, of the score
            up, down = (
                bridge_matching(
                    moved(bridge.field, g, sign * steps[0]),
                    moved(bridge.score, g, sign * steps[1]),
                    path,
                    PairedCoupling(),
                    x1,
                    x0=x0,
                    t=t,
                    generator=torch.Generator().manual_seed(4),
                )
                for sign in (1, -1)
            )
            gap = up - down
            assert gap.std() > 0.01
            assert abs(gap.mean()) < 6 * gap.std() / n**0.5, (g, steps)


def moved(
    f: Callable[[Tensor, Tensor], Tensor], g: Callable[[Tensor, Tensor], Tensor], step: float
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    return lambda t, x, c: f(t, x) + step * g(t, x)


def test_the_entropic_coupling_with_reg_twice_sigma_squared_is_the_plan_of_the_bridge() -> None:
    """Cov(x0, x1) over a pool of 500, against the closed form of the pool's own moments.

    Left are its higher moments, below 0.02; half or twice the reg moves the diagonal by 0.1.
    """
    sigma, n = 0.8, 500
    bridge = Bridge(sigma)
    x0 = torch.randn(n, 2) @ torch.linalg.cholesky(bridge.A).T
    x1 = torch.randn(n, 2) @ torch.linalg.cholesky(bridge.B).T
    x0, x1 = x0 - x0.mean(0), x1 - x1.mean(0)
    found = x0.T @ EntropicCoupling(reg=2 * sigma**2).plan(x0, x1) @ x1
    assert torch.allclose(found, plan(x0.T.cov(), x1.T.cov(), sigma), atol=0.05)


@pytest.mark.parametrize("ts", [[0.0, 0.5, 1.0], [1.0, 0.3, 0.0], [0.3, 0.8], [0.8, 0.25]])
def test_the_process_has_the_marginals_of_the_bridge_in_both_directions(ts: list[float]) -> None:
    """Started from the law at ts[0]. 45 moments within 6 standard errors and the bias of a step.

    False alarms below 1e-7.
    """
    sigma, n, steps = 0.8, 8_000, 100
    bridge = Bridge(sigma)
    start = torch.tensor(ts[0])
    x = bridge.mean(start) + torch.randn(n, 2) @ torch.linalg.cholesky(bridge.covariance(start)).T
    inner = lambda f: lambda t, x, c: f(t.clamp(1e-6, 1 - 1e-6), x)
    process = BridgeProcess(inner(bridge.field), inner(bridge.score), sigma)
    path = process.trajectory(x, ts, steps=steps)
    assert path.shape == (len(ts), n, 2)
    assert torch.equal(path[0], x)
    for t, points in zip(torch.tensor(ts), path, strict=True):
        wanted = bridge.covariance(t)
        spread = wanted.diagonal()
        assert (points.mean(0) - bridge.mean(t)).abs().le(6 * (spread / n).sqrt() + 1 / steps).all()
        error = ((spread[:, None] * spread + wanted.square()) / n).sqrt()
        assert (points.T.cov() - wanted).abs().le(6 * error + 2 / steps).all()


def test_noise_is_what_makes_the_process_differ_from_the_flow() -> None:
    """Without diffusion it is Euler's method; correlation of ends falls as sigma rises."""
    bridge = Bridge(0.8)
    x = torch.randn(7, 3, 2)
    plain = BridgeProcess(bridge.field, bridge.score, 0.0).trajectory(x, [0.0, 0.1], steps=10)
    assert torch.allclose(plain[1], x + 0.1 * bridge.field(torch.zeros(7, 3), x))
    n = 5000
    x0 = bridge.pairs(n)[0]
    end = BridgeProcess(bridge.field, bridge.score, 0.8).trajectory(x0, [0.0, 0.999])[1]
    cross = (x0 - x0.mean(0)).T @ (end - end.mean(0)) / n
    assert torch.allclose(cross, bridge.C, atol=0.1)  # six standard errors


def test_points_are_a_brownian_bridge_and_the_target_is_their_derivative() -> None:
    x0, x1, e = torch.randn(3, 5, 2, 3)
    path, t = BridgePath(0.7), 0.01 + 0.98 * torch.rand(5)
    point = path.sample(x0, x1, t, noise=e)
    _, slope = torch.func.jvp(
        lambda s: path.sample(x0, x1, s, noise=e).x, (t,), (torch.ones_like(t),)
    )
    assert torch.allclose(point.target, slope)
    for end, there in ((0.0, x0), (1.0, x1)):
        point = path.sample(x0, x1, torch.full((5,), end), noise=e)
        assert torch.equal(point.x, there)
        assert point.target.abs().max() < 0.7 * 0.5 / 1e-3**0.5 * 5 + 10
    many = path.sample(
        torch.zeros(50_000),
        torch.ones(50_000),
        torch.full((50_000,), 0.3),
        noise=torch.randn(50_000),
    )
    assert abs(many.x.std() - 0.7 * 0.21**0.5) < 6 * 0.33 / 100_000**0.5
    assert torch.allclose(path.over(0.25).spread(t), 0.5 * path.spread(t))


def test_one_generator_decides_loss_and_process() -> None:
    field, score, x = MLPField(2), MLPField(2), torch.randn(16, 2)
    seeded = lambda s: torch.Generator().manual_seed(s)
    args = field, score, BridgePath(0.5), IndependentCoupling(), x
    assert torch.equal(
        bridge_matching(*args, generator=seeded(1)), bridge_matching(*args, generator=seeded(1))
    )
    process = BridgeProcess(field, score, 0.5)
    assert len(list(process.parameters())) == 2 * len(list(field.parameters()))
    run = lambda s: process.trajectory(x, [0.0, 1.0], steps=5, generator=seeded(s))
    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_weights_of_pairs_reach_both_errors() -> None:
    x = torch.randn(4, 2)
    asked = regression(BridgePath(0.5), PairedCoupling(), x, x0=x)
    spread = BridgePath(0.5).spread(asked.t)
    plain = bridge_error(lambda t, x, c: x, asked, spread)
    double = bridge_error(lambda t, x, c: x, asked._replace(weight=torch.full((4,), 2.0)), spread)
    assert torch.allclose(double, 2 * plain)


def test_bad_input_is_refused() -> None:
    x, t = torch.zeros(3, 2), torch.rand(3)
    zero = lambda t, x, c: torch.zeros_like(x)
    with pytest.raises(DomainError, match="sigma must be positive"):
        BridgePath(0.0)
    with pytest.raises(DomainError, match=r"margin must lie in \(0, 1/2\)"):
        BridgePath(1.0, margin=0.5)
    with pytest.raises(DomainError, match="needs standard normal noise"):
        BridgePath(1.0).sample(x, x, t)
    with pytest.raises(DomainError, match=r"must lie in \[0, 1\]"):
        BridgePath(1.0).sample(x, x, t + 1, noise=x)
    with pytest.raises(ShapeError, match="score must have the shape of x"):
        bridge_matching(zero, lambda t, x, c: x[:, :1], BridgePath(1.0), PairedCoupling(), x)
    with pytest.raises(DomainError, match="without noise"):
        bridge_error(zero, Regression(t, x, x, None, None), t)
    process = BridgeProcess(zero, zero, 1.0)
    for ts in ([0.0], [0.0, 0.5, 0.2], [0.5, 0.5]):
        with pytest.raises(DomainError, match="all rising or all falling"):
            process.trajectory(x, ts)
    with pytest.raises(DomainError, match=r"must lie in \[0, 1\]"):
        process.trajectory(x, [0.0, 1.5])
    with pytest.raises(DomainError, match="steps must be positive"):
        process.trajectory(x, [0.0, 1.0], steps=0)
    with pytest.raises(ShapeError, match="3 axes for one point"):
        BridgeProcess(zero, zero, 1.0, event_dim=3).trajectory(x, [0.0, 1.0])
    with pytest.raises(DomainError, match="sigma and event_dim must be 0 or more"):
        BridgeProcess(zero, zero, -1.0)
