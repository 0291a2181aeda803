"""Dirichlet flows: rates, laws and bounds against what is known in closed form."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import betainc, betaincinv, betaln, digamma
from scipy.stats import beta, chisquare, kstest
from torch import Tensor, nn
from torch.nn.functional import one_hot

import cflow
from cflow import Flow, State
from cflow.errors import DomainError, ShapeError
from cflow.field import ClassifierFree, FlattenedField, MLPField
from cflow.jump import (
    DirichletPath,
    FisherPath,
    VertexDequantize,
    VertexPosterior,
    relaxed_flow,
    relaxed_matching,
)
from cflow.matching import ContextDropout, OTCoupling
from cflow.ode import RK4, Euler, Midpoint
from cflow.train import Trainer
from cflow.transport import ODE, Affine

FALSE_ALARM = 1e-6  # probability with which each statistical test fails by chance
LAW = torch.tensor([[6.0, 1.0, 1.0], [0.4, 4.0, 1.6], [2.0, 0.0, 4.0]]) / 20


def perfect(path: DirichletPath, law: Tensor) -> VertexPosterior:
    """Give the true posterior of two tokens whose joint law is a table.

    log p(y | x) = log P(y) + s (log x_1,y1 + log x_2,y2) up to a constant.
    """

    def logits(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        each = path.evidence(t, x)
        joint = law.to(x).log() + each[:, 0, :, None] + each[:, 1, None, :]
        return torch.stack([joint.logsumexp(2), joint.logsumexp(1)], 1)

    return VertexPosterior(logits, path)


def network(tokens: int, values: int, context: int = 0) -> FlattenedField:
    size = tokens * values
    return FlattenedField(MLPField(size, context, hidden_features=(64, 64)), (tokens, values))


def draw(flow: Flow, n: int) -> Tensor:
    """Sample without the type of `Flow.sample`, which says that points are floating."""
    with torch.no_grad():
        return flow.transport.push(State(flow.base.sample((n,)))).x


def share(x: Tensor, law: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Count the cells of the table that have mass, beside what is expected; none else occurs."""
    counts = torch.bincount(law.shape[1] * x[:, 0] + x[:, 1], minlength=law.numel()).numpy()
    mass = law.flatten().double().numpy()
    assert counts[mass == 0].sum() == 0
    counts, mass = counts[mass > 0], mass[mass > 0]
    return counts, counts.sum() * mass / mass.sum()


@pytest.mark.parametrize("values", [2, 4, 27, 512])
def test_rates_are_derivatives_of_the_incomplete_beta_function(values: int) -> None:
    """By differences of scipy's, where those have digits: between the quantiles."""
    path, m, h = DirichletPath(values), values - 1, 1e-5
    for t in (0.1, 0.33, 0.77, 1.0):
        a = (1 + path.end) ** t
        y = betaincinv(a, m, np.array([0.01, 0.2, 0.5, 0.9, 0.99]))
        slope = (betainc(a + h, m, y) - betainc(a - h, m, y)) / (2 * h)
        log_density = (a - 1) * np.log(y) + m * np.log1p(-y) - betaln(a, m)  # times 1 - y
        expected = -math.log1p(path.end) * a * slope / np.exp(log_density)
        got = path.rates(torch.tensor(t), torch.from_numpy(y)).numpy()
        np.testing.assert_allclose(got, expected, rtol=3e-6)


def test_rates_at_the_ends_and_their_greatest() -> None:
    t, y = torch.rand(2000), torch.rand(2000)
    two = DirichletPath(2)
    expected = -math.log(21) * y * y.log() / (1 - y)
    torch.testing.assert_close(two.rates(t, y), expected, rtol=1e-6, atol=0)
    for values, end in ((3, 20.0), (30, 100.0)):
        path = DirichletPath(values, end)
        a = (1 + end) ** t
        gap = torch.from_numpy(digamma(a.numpy() + values - 1) - digamma(a.numpy()))
        at_vertex = math.log1p(end) * a * gap / (values - 1)
        torch.testing.assert_close(path.rates(t, torch.ones(2000)), at_vertex, rtol=1e-5, atol=0)
        for z in (0.5, 5.0, 40.0):
            assert path.rates(t, y**z).max() <= math.log1p(end) * (1 + 1e-6)
        tiny = path.rates(t, torch.full((2000,), 1e-30))
        assert bool((tiny > 0).all())
        assert bool((tiny < 1e-27).all())
        float32 = path.rates(t.float(), y.float()).double()
        torch.testing.assert_close(float32, path.rates(t, y), rtol=1e-5, atol=0)


@pytest.mark.parametrize("values", [3, 5])
def test_the_velocity_and_the_law_obey_the_continuity_equation(values: int) -> None:
    """d/dt log p + v . grad log p + div v = 0 with p the law of Dirichlet."""
    path = DirichletPath(values)
    x = torch.distributions.Dirichlet(torch.full((values,), 2.0)).sample((40,))
    vertex = one_hot(torch.arange(40) % values, values).double()

    def log_p(t: Tensor, x: Tensor, vertex: Tensor) -> Tensor:
        s = path.concentration(t)
        constant = torch.lgamma(values + s) - torch.lgamma(1 + s)
        return constant + s * (x * vertex).sum(-1).log()

    def residual(t: Tensor, x: Tensor, vertex: Tensor) -> Tensor:
        move = lambda x: path.velocity(t, x, vertex)
        in_t = torch.func.grad(lambda t: log_p(t, x, vertex))(t)
        in_x = torch.func.grad(lambda x: log_p(t, x, vertex))(x)
        return in_t + in_x @ move(x) + torch.func.jacfwd(move)(x).trace()

    t = 0.01 + 0.98 * torch.rand(40)
    rest = torch.func.vmap(residual)(t, x, vertex)
    assert rest.abs().max() < 2e-4


def test_points_follow_their_quantiles_to_the_vertex() -> None:
    """Along the velocity of one vertex x_i keeps its rank, and the others their proportions."""
    values = 4
    path = DirichletPath(values)
    toward = lambda t, x, context: 1e4 * one_hot(torch.zeros(len(x), 1).long(), values).to(x)
    field = VertexPosterior(toward, path)
    x0 = path.base((1,)).sample((300,))
    ode = ODE(field, RK4(32), manifold=path.manifold(1))
    for x, t in zip(ode.trajectory(x0, [0.0, 0.3, 0.7, 1.0])[1:], (0.3, 0.7, 1.0), strict=True):
        rank = 1 - (1 - x0[:, 0, 0].numpy()) ** (values - 1)
        expected = torch.from_numpy(betaincinv((1 + path.end) ** t, values - 1, rank))
        torch.testing.assert_close(x[:, 0, 0], expected, atol=1e-4, rtol=0)
        others = x[:, 0, 1:] / x[:, 0, 1:].sum(-1, keepdim=True)
        torch.testing.assert_close(others, x0[:, 0, 1:] / x0[:, 0, 1:].sum(-1, keepdim=True))
        torch.testing.assert_close(x.sum(-1), torch.ones(300, 1))


@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
def test_points_of_the_path_have_the_law_of_dirichlet(t: float) -> None:
    path, n, values = DirichletPath(5, 12.0), 20_000, 5
    vertex = one_hot(torch.full((n,), 2), values).double()
    x0, noise = path.base(()).sample((n,)), torch.randn(n, values)
    point = path.sample(x0, vertex, torch.full((n,), t), noise=noise)
    s = 13**t - 1
    own, other = beta(1 + s, values - 1), beta(1, values - 1 + s)
    assert kstest(point.x[:, 2].numpy(), own.cdf).pvalue > FALSE_ALARM
    assert kstest(point.x[:, 4].numpy(), other.cdf).pvalue > FALSE_ALARM
    if t < 1:  # the test would see a law that is a little late
        late = beta(1.2 + s, values - 1)
        assert kstest(point.x[:, 2].numpy(), late.cdf).pvalue < FALSE_ALARM
    torch.testing.assert_close(point.target, path.velocity(point.t, point.x, vertex))


def test_a_perfect_posterior_gives_the_law_of_the_data() -> None:
    """The largest entry at t = 1 is that of another value with probability 1e-6."""
    flow = relaxed_flow(perfect(DirichletPath(3), LAW), 2, solver=Midpoint(12))
    counts, expected = share(draw(flow, 20_000), LAW)
    assert chisquare(counts, expected).pvalue > FALSE_ALARM
    coarse = relaxed_flow(perfect(DirichletPath(3), LAW), 2, solver=Euler(3))
    counts = torch.bincount(3 * (x := draw(coarse, 20_000))[:, 0] + x[:, 1], minlength=9).numpy()
    seen = counts[LAW.flatten() > 0]
    assert chisquare(seen, seen.sum() * expected / 20_000).pvalue < FALSE_ALARM, "it would be seen"


def test_steps_of_eulers_stay_on_the_simplex() -> None:
    path = DirichletPath(4)
    wild = VertexPosterior(
        lambda t, x, context: 30 * torch.sin(40 * x + 9 * t[:, None, None]), path
    )
    ode = ODE(wild, Euler(4), manifold=path.manifold(1))
    x = ode.trajectory(path.base((3,)).sample((2000,)), [0.0, 0.25, 0.5, 0.75, 1.0])
    assert x.min() >= 0
    torch.testing.assert_close(x.sum(-1), torch.ones(x.shape[:-1]))


@pytest.mark.parametrize("concentration", [0.5, 4.0])
def test_the_density_of_a_cell_integrates_to_one(concentration: float) -> None:
    """On a grid of the simplex; and the mean of the largest entry is that of draws."""
    layer, n = VertexDequantize(3, concentration, event_dim=0), 900
    grid = (torch.arange(n) + 0.5) / n
    first, second = torch.meshgrid(grid, grid, indexing="ij")
    p = torch.stack([first, second, 1 - first - second], -1)
    p = p[p[..., 2] > 0]
    constant = math.lgamma(3 + concentration) - math.lgamma(1 + concentration)
    q = (constant + torch.logsumexp(concentration * p.log(), -1)).exp() / n**2
    for x in range(3):
        cell = p.argmax(-1) == x
        assert q[cell].sum().item() == pytest.approx(1, abs=5e-3)
        y = torch.full((20_000,), x)
        drawn = layer.pull(State(y, torch.zeros(20_000)))
        assert drawn.ladj is not None
        expected = (constant + torch.logsumexp(concentration * drawn.x.log(), -1)).neg()
        torch.testing.assert_close(drawn.ladj, expected)
        assert torch.equal(drawn.x.argmax(-1), y)
        torch.testing.assert_close(drawn.x.sum(-1), torch.ones(20_000))
        mean, error = drawn.x[:, x].mean(), drawn.x[:, x].std() / 20_000**0.5
        assert abs(mean - (p[cell, x] * q[cell]).sum()) < 5 * error + 5e-3


def test_for_even_tokens_the_bound_is_an_equality() -> None:
    even = torch.full((3, 3), 1 / 9)
    flow = relaxed_flow(perfect(DirichletPath(3, 4.0), even), 2, solver=RK4(16))
    assert flow.likelihood == "bound"
    value = flow.log_prob(torch.cartesian_prod(torch.arange(3), torch.arange(3)))
    torch.testing.assert_close(value, torch.full((9,), -math.log(9)), atol=1e-4, rtol=0)


def test_the_bound_is_below_the_law_and_near_it_at_a_sharp_end() -> None:
    """Five standard errors of 64 draws, and what the solver may err: see the test above."""
    x = LAW.nonzero()
    truth = LAW[LAW > 0].log()
    gaps = []
    for end in (6.0, 25.0):
        flow = relaxed_flow(perfect(DirichletPath(3, end), LAW), 2, solver=RK4(12))
        with torch.no_grad():
            value, error = flow.log_prob_with_error(x, repeats=64)
        other = 2 * 0.5 ** (1 + end)  # chance that the largest entry is another's, of two
        assert bool((value < (truth.exp() + 2 * other).log() + 5 * error + 1e-3).all())
        gaps.append((truth - value).abs().max().item())
    assert gaps[1] < 0.02 < gaps[0]


class SeesItself(nn.Module):
    def __init__(self, net: nn.Module, path: DirichletPath) -> None:
        super().__init__()
        self.net, self.path = net, path

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        return self.net(t, x, context) + self.path.evidence(t, x)


def test_training_by_cross_entropy_gives_the_law() -> None:
    table = torch.multinomial(LAW.flatten(), 4000, replacement=True)
    x1 = torch.stack([table // 3, table % 3], -1)
    path = DirichletPath(3)
    net = SeesItself(network(2, 3), path)
    flow = relaxed_flow(VertexPosterior(net, path), 2, solver=Midpoint(12))
    trainer = Trainer(
        flow, relaxed_matching, steps=150, batch=256, lr=5e-3, ema=0.97, progress=False
    )
    trainer.fit(x1)
    x = draw(flow, 10_000)
    found = torch.bincount(3 * x[:, 0] + x[:, 1], minlength=9) / 10_000
    away = lambda p: ((p - LAW).abs().sum() / 2).item()
    alone = LAW.sum(1, keepdim=True) * LAW.sum(0)  # what tokens without each other would have
    assert away(found.reshape(3, 3)) < 0.1 < 0.3 < away(alone)


@pytest.mark.unchecked
def test_it_is_a_flow_with_contexts_files_and_shapes(tmp_path: Path) -> None:
    """Without type checks: `Flow.sample` says that points are floating."""
    build = lambda net: relaxed_flow(
        VertexPosterior(net, DirichletPath(3)), 4, solver=Euler(4), context_shape=(2,)
    )
    net, context = network(4, 3, context=2), torch.randn(5, 2)
    flow = build(net)
    x = flow.sample((6,), context)
    assert x.shape == (6, 5, 4)
    assert x.dtype == torch.int64
    assert flow.log_prob(x[0], context).shape == (5,)
    drop = ContextDropout(0.5)
    loss = relaxed_matching(flow, x[0], context, coupling=OTCoupling(), dropout=drop)
    assert loss.shape == (5,)
    flow.save(tmp_path / "flow.safetensors")
    other = build(network(4, 3, context=2))
    cflow.load(tmp_path / "flow.safetensors", into=other)
    draws = [
        f.sample(3, context, generator=torch.Generator().manual_seed(1)) for f in (flow, other)
    ]
    assert torch.equal(*draws)
    assert build(ClassifierFree(net, 2.0, null=0.0)).sample(3, context).shape == (3, 5, 4)
    single = relaxed_flow(VertexPosterior(lambda t, x, c: x, DirichletPath(3)), ())
    assert single.sample(7).shape == (7,)
    grid = relaxed_flow(VertexPosterior(lambda t, x, c: x, DirichletPath(3)), (2, 5))
    assert grid.sample(7).shape == (7, 2, 5)
    assert relaxed_matching(grid, torch.zeros(7, 2, 5, dtype=torch.int32)).shape == (7,)


def test_bad_input_is_refused_in_words() -> None:
    path = DirichletPath(3)
    flow = relaxed_flow(VertexPosterior(network(2, 3), path), 2)
    with pytest.raises(DomainError, match=r"between 0 and 2, got 3 at index \(1, 0\)"):
        relaxed_matching(flow, torch.tensor([[0, 1], [3, 2]]))
    with pytest.raises(DomainError, match=r"must be integers, got torch\.float64"):
        relaxed_matching(flow, torch.zeros(4, 2))
    with pytest.raises(DomainError, match=r"between 0 and 2, got -1 at index \(0, 1\)"):
        flow.log_prob(torch.tensor([[0, -1]]))
    with pytest.raises(ShapeError, match=r"tokens must end in shape \(2,\)"):
        relaxed_matching(flow, torch.zeros(4, 3).long())
    with pytest.raises(ShapeError, match="one leading batch axis"):
        relaxed_matching(flow, torch.zeros(4, 4, 2).long())
    with pytest.raises(DomainError, match="takes no context"):
        relaxed_matching(flow, torch.zeros(4, 2).long(), torch.zeros(4, 1))
    with pytest.raises(DomainError, match=r"build it by relaxed_flow\(VertexPosterior"):
        relaxed_matching(Flow(path.base((2,)), Affine(1.0)), torch.zeros(4, 2).long())
    wrong = relaxed_flow(VertexPosterior(lambda t, x, c: x[..., 0], path), 2)
    with pytest.raises(ShapeError, match=r"one number for each value .*\(4, 2, 3\), got \(4, 2\)"):
        relaxed_matching(wrong, torch.zeros(4, 2).long())
    with pytest.raises(DomainError, match="needs standard normal noise"):
        path.sample(torch.rand(4, 2, 3), torch.rand(4, 2, 3), torch.rand(4))
    with pytest.raises(ShapeError, match="end in an axis of 3 values"):
        path.sample(torch.rand(4, 2), torch.rand(4, 2), torch.rand(4), noise=torch.rand(4, 2))
    for kind in (DirichletPath, FisherPath):
        with pytest.raises(DomainError, match="vocabulary must be at least 2, got 1"):
            kind(1)
    with pytest.raises(DomainError, match="end must be positive"):
        DirichletPath(3, 0.0)
    with pytest.raises(DomainError, match=r"points of 2 axes, the last of 3 probab.* got \(3,\)"):
        Flow(path.base(()), VertexDequantize(3, 1.0))
