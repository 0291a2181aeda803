"""Fisher flows: geodesics of the simplex, laws that come back, and steps that stay inside."""

import math

import pytest
import torch
from scipy.stats import beta, chisquare, kstest
from torch import Tensor, nn
from torch.nn.functional import one_hot

from cflow import Flow, State
from cflow.errors import DomainError
from cflow.field import FlattenedField, MLPField
from cflow.jump import (
    FisherPath,
    VertexPosterior,
    VertexVelocity,
    relaxed_flow,
    relaxed_matching,
)
from cflow.manifold import Simplex, Sphere
from cflow.matching import GeodesicPath, OTCoupling, PairedCoupling, matching
from cflow.ode import Euler, Midpoint
from cflow.train import Trainer
from cflow.transport import ODE

FALSE_ALARM = 1e-6  # probability with which each statistical test fails by chance
LAW = torch.tensor([[6.0, 1.0, 1.0], [0.4, 4.0, 1.6], [2.0, 0.0, 4.0]]) / 20
WILD = lambda t, x, context: 30 * torch.sin(40 * x + 9 * t[:, None, None])


def perfect(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
    """Give the true posterior of two tokens of three values whose joint law is the table.

    An angle th to the vertex was th / (1 - t) at the start, where the law is even: the density is
    sin(th / (1 - t)) / sin(th) up to a constant, where that start is on the simplex, else 0.
    """
    angle = x.clamp(-1, 1).acos()
    start = angle / (1 - t)[:, None, None]
    density = start.sin().clamp_min(1e-30) / angle.sin().clamp_min(1e-30)
    each = torch.where(start <= math.pi / 2, density.log(), -1e4)
    joint = LAW.to(x).log() + each[:, 0, :, None] + each[:, 1, None, :]
    return torch.stack([joint.logsumexp(2), joint.logsumexp(1)], 1)


def draw(flow: Flow, n: int) -> Tensor:
    """Sample without the type of `Flow.sample`, which says that points are floating."""
    with torch.no_grad():
        return flow.transport.push(State(flow.base.sample((n,)))).x


def counted(x: Tensor) -> Tensor:
    return torch.bincount(3 * x[:, 0] + x[:, 1], minlength=9)


@pytest.mark.parametrize("values", [2, 4, 30])
def test_the_path_is_the_geodesic_of_the_simplex(values: int) -> None:
    """In the metric of Fisher and Rao, for roots r of probabilities p = r^2 and dp = 2 r dr."""
    path, n = FisherPath(values), 40
    r0 = path.base((3,)).sample((n,))
    r1 = one_hot(torch.randint(values, (n, 3)), values).double()
    t = torch.linspace(0, 0.95, n)
    point = path.sample(r0, r1, t)
    each = t[:, None].expand(n, 3)
    theirs = GeodesicPath(Simplex()).sample(r0.square(), r1.square(), each)
    torch.testing.assert_close(point.x.square(), theirs.x, atol=1e-12, rtol=0)
    torch.testing.assert_close(2 * point.x * point.target, theirs.target, atol=1e-7, rtol=0)
    torch.testing.assert_close(point.t, t)


def test_the_velocity_is_the_mean_of_those_to_the_vertices() -> None:
    path = FisherPath(5)
    x, t, p = path.base((2,)).sample((60,)), 0.99 * torch.rand(60), torch.rand(60, 2, 5)
    p = p / p.sum(-1, keepdim=True)
    logs = Sphere().logmap(x[..., None, :], torch.eye(5))  # (60, 2, vertex, entry)
    expected = (p[..., None] * logs).sum(-2) / (1 - t)[:, None, None]
    torch.testing.assert_close(path.velocity(t, x, p), expected)
    r1 = one_hot(torch.randint(5, (60, 2)), 5).double()
    point = path.sample(x, r1, t)
    torch.testing.assert_close(path.velocity(t, point.x, r1), point.target, atol=1e-9, rtol=1e-9)
    near = torch.tensor([[1.0, 1e-9, 0.0, 0.0, 0.0]]).requires_grad_()
    path.velocity(torch.zeros(1), near, torch.eye(5)[:1]).sum().backward()
    assert near.grad is not None
    assert bool(torch.isfinite(near.grad).all())


def test_noise_is_even_in_the_metric() -> None:
    """Squares of even roots are Dir(1/2), the volume of Fisher and Rao."""
    base = FisherPath(4).base((2,))
    x = base.sample((20_000,)).square()
    law = beta(0.5, 1.5)
    assert kstest(x[:, 1, 3].numpy(), law.cdf).pvalue > FALSE_ALARM
    density = base.log_prob(base.sample((3,)))
    torch.testing.assert_close(density, torch.full((3,), -2 * math.log(math.pi**2 / 8)))
    assert base.log_prob(-base.sample((3,))).tolist() == [-math.inf] * 3


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_steps_of_eulers_stay_where_no_root_is_negative(steps: int) -> None:
    path = FisherPath(4)
    ode = ODE(VertexPosterior(WILD, path), Euler(steps), manifold=path.manifold(1))
    x = ode.trajectory(path.base((3,)).sample((2000,)), [0.0, 0.5, 1.0])
    assert x.min() >= 0
    torch.testing.assert_close(x.square().sum(-1), torch.ones(x.shape[:-1]))


def test_an_ode_follows_the_geodesics() -> None:
    path = FisherPath(4)
    x0, vertex = path.base((1,)).sample((200,)), one_hot(torch.zeros(200, 1).long(), 4).double()
    field = VertexPosterior(lambda t, x, context: 1e4 * vertex, path)
    ode = ODE(field, Midpoint(40), manifold=path.manifold(1))
    for x, t in zip(ode.trajectory(x0, [0.0, 0.25, 0.75])[1:], (0.25, 0.75), strict=True):
        there = path.sample(x0, vertex, torch.full((200,), t)).x
        torch.testing.assert_close(x, there, atol=1e-3, rtol=0)


def test_a_perfect_posterior_gives_the_law_of_the_data() -> None:
    """It jumps where a vertex falls out of reach, so that every solver is of first order.

    Euler with n steps is off by 0.45 / n of total variation here, below what 8000 draws show at
    n = 64; at n = 8 it is seen.
    """
    mass = (LAW / LAW.sum()).flatten().double().numpy()
    for steps, fits in ((64, True), (8, False)):
        flow = relaxed_flow(VertexPosterior(perfect, FisherPath(3)), 2, solver=Euler(steps))
        counts = counted(draw(flow, 8000)).numpy()
        assert counts[mass == 0] < 0.002 * 8000
        seen, expected = counts[mass > 0], mass[mass > 0]
        p = chisquare(seen, seen.sum() * expected / expected.sum()).pvalue
        assert (p > FALSE_ALARM) == fits


class Learned(nn.Module):
    """A perceptron on two tokens of three values, zero at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.net = FlattenedField(MLPField(6, hidden_features=(64, 64)), (2, 3))

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        return self.net(t, x)


@pytest.mark.parametrize("kind", [VertexPosterior, VertexVelocity])
def test_training_gives_the_law(kind: type) -> None:
    table = torch.multinomial(LAW.flatten(), 4000, replacement=True)
    x1 = torch.stack([table // 3, table % 3], -1)
    flow = relaxed_flow(kind(Learned(), FisherPath(3)), 2, solver=Euler(24))
    trainer = Trainer(
        flow, relaxed_matching, steps=200, batch=256, lr=5e-3, ema=0.97, progress=False
    )
    trainer.fit(x1)
    found = counted(draw(flow, 10_000)).reshape(3, 3) / 10_000
    away = lambda p: ((p - LAW).abs().sum() / 2).item()
    alone = LAW.sum(1, keepdim=True) * LAW.sum(0)  # what tokens without each other would have
    assert away(found) < 0.15 < 0.3 < away(alone)


def test_the_loss_is_that_of_matching_on_the_same_path() -> None:
    """A path to vertices is a path like any other: couplings and losses take it."""
    path, net, n = FisherPath(3), Learned(), 32
    field = VertexVelocity(net, path)
    flow = relaxed_flow(field, 2)
    x1, x0, t = torch.randint(3, (n, 2)), flow.base.sample((n,)), torch.rand(n)
    ends = one_hot(x1, 3).double()
    paired = PairedCoupling()
    ours = relaxed_matching(flow, x1, x0=x0, t=t, coupling=paired)
    theirs = matching(field, path, paired, ends, x0=x0, t=t)
    torch.testing.assert_close(ours, 3 * theirs)  # a sum over the values of a token
    weighted = relaxed_matching(flow, x1, x0=x0, t=t, coupling=paired, weight=lambda t: t)
    torch.testing.assert_close(weighted, t * ours)
    together = relaxed_matching(flow, x1, x0=x0, t=t, coupling=OTCoupling())
    assert together.mean() < ours.mean()


@pytest.mark.unchecked
def test_it_samples_tokens_and_says_that_it_has_no_likelihood() -> None:
    """Without type checks: `Flow.sample` says that points are floating."""
    flow = relaxed_flow(VertexPosterior(WILD, FisherPath(4)), 3, solver=Euler(5))
    x = flow.sample((2, 7), generator=torch.Generator().manual_seed(0))
    assert x.shape == (2, 7, 3)
    assert x.dtype == torch.int64
    again = flow.sample((2, 7), generator=torch.Generator().manual_seed(0))
    assert torch.equal(x, again)
    with pytest.raises(DomainError, match="ends in vertices, where there is no density"):
        flow.log_prob(x)
    with pytest.raises(DomainError, match=r"between 0 and 3, got 4 at index \(0, 2\)"):
        relaxed_matching(flow, torch.tensor([[0, 1, 4]]))
