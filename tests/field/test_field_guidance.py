"""Guided fields against closed forms between Gaussian mixtures, and what each evaluation costs."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import jacrev, vmap

from cflow import Flow
from cflow.base import Gaussian
from cflow.errors import DomainError, ShapeError
from cflow.field import (
    AutoGuided,
    ClassifierFree,
    CosineSchedule,
    DiTField,
    Exact,
    Field,
    FunctionField,
    GaussianMixture,
    LinearSchedule,
    LinearVPSchedule,
    LipmanSchedule,
    LogDensityGuided,
    MixtureField,
    MLPField,
    PathSchedule,
    PolynomialSchedule,
    UNetField,
    VPSchedule,
)
from cflow.ode import RK4, Dopri5
from cflow.transport import ODE

SCHEDULES = [
    LinearSchedule(),
    PolynomialSchedule(2.0),
    CosineSchedule(),
    VPSchedule(),
    LinearVPSchedule(),
    LipmanSchedule(0.1),
]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)

MEANS = torch.tensor([[2.0, 0.5], [-1.0, 1.5], [0.0, -2.0]], dtype=torch.float64)
SPREADS = torch.tensor([0.3, 0.6, 0.4], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)


def normal() -> GaussianMixture:
    return GaussianMixture(torch.zeros(1, 2))


def everything(schedule: PathSchedule) -> MixtureField:
    return MixtureField(normal(), GaussianMixture(MEANS, SPREADS, WEIGHTS), schedule)


def of_class(schedule: PathSchedule) -> MixtureField:
    """The law given class 1, which are the last two of the three components."""
    law = GaussianMixture(MEANS[1:], SPREADS[1:], WEIGHTS[1:] / WEIGHTS[1:].sum())
    return MixtureField(normal(), law, schedule)


def posterior(schedule: PathSchedule) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """log p(class 1 | x_t), by Bayes."""
    known, unknown = of_class(schedule), everything(schedule)
    prior = WEIGHTS[1:].sum().log()
    return lambda t, x, context: known.log_prob(t, x) + prior - unknown.log_prob(t, x)


class Counting(Field):
    """A perceptron that notes the batches it is asked for."""

    def __init__(self, context: int = 3) -> None:
        super().__init__()
        self.net = MLPField(2, context, hidden_features=(16,))
        self.asked: list[tuple[int, ...]] = []

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        assert t.shape == x.shape[:-1]
        self.asked.append(tuple(t.shape))
        return self.net(t, x, x.new_zeros(*t.shape, 3) if context is None else context)


def points(*batch: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.rand(batch), torch.randn(*batch, 2), torch.randn(*batch, 3)


@each_schedule
def test_the_exact_posterior_of_a_class_gives_the_velocity_of_that_class(schedule) -> None:
    field = LogDensityGuided(everything(schedule), posterior(schedule), schedule=schedule)
    t = torch.linspace(1e-3, 1 - 1e-4, 40)[:, None].expand(40, 25)
    x = 1.5 * torch.randn(40, 25, 2)
    expected = of_class(schedule)(t, x)
    assert torch.allclose(field(t, x), expected, rtol=1e-8, atol=1e-8)
    start, end = torch.zeros(25), torch.ones(25)  # the gradient term is that a little further in
    assert torch.allclose(field(start, x[0]), of_class(schedule)(start, x[0]), rtol=0, atol=0.02)
    assert bool(torch.isfinite(field(end, x[0])).all())


def test_samples_and_likelihood_of_density_guidance_are_those_of_the_class() -> None:
    schedule = LinearSchedule()
    field = LogDensityGuided(everything(schedule), posterior(schedule), schedule=schedule)
    flow = Flow(Gaussian(2), ODE(field, RK4(20)))
    truth = of_class(schedule).target
    x = truth.sample(5)
    with torch.no_grad():
        assert torch.allclose(flow.log_prob(x), truth.log_prob(x), rtol=0, atol=2e-3)
        x = flow.sample(4_000)
    # The mean has a standard error of 0.03 at most; 6 of them fail by chance below 1e-8.
    spread = truth.covariance.diagonal().sqrt()
    assert bool(((x.mean(0) - truth.mean).abs() < 6 * spread / 4_000**0.5).all())


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_density_guidance_adds_a_multiple_of_the_gradient(scale: float) -> None:
    schedule = CosineSchedule()
    field, t = everything(schedule), torch.full((7,), 0.3)
    x, y = torch.randn(7, 2), torch.randn(7, 1)
    energy = lambda t, x, context: -(x[..., 0] - context[..., 0] * t).square()
    got = LogDensityGuided(field, energy, schedule=schedule, scale=scale)(t, x, y)
    gradient = torch.stack([-2 * (x[:, 0] - y[:, 0] * t), torch.zeros(7)], -1)
    c = schedule(t[:1])
    rate = c.sigma * (c.d_alpha * c.sigma - c.alpha * c.d_sigma) / c.alpha
    assert torch.allclose(got, field(t, x) + scale * rate * gradient)
    early = LogDensityGuided(field, energy, schedule=schedule, interval=(0.5, 1.0))
    assert torch.equal(early(t, x, y), field(t, x))


def test_guidance_at_the_data_differentiates_through_the_field() -> None:
    schedule = LinearSchedule()
    field = everything(schedule)
    t, x, y = torch.full((6,), 0.4), torch.randn(6, 2), torch.randn(6, 2)
    likelihood = lambda t, x1, context: -0.5 * (x1 - context).square().sum(-1)
    guided = LogDensityGuided(field, likelihood, schedule=schedule, of="data")
    jacobian = vmap(jacrev(lambda t, z: field.ends(t[None], z[None]).x1[0], argnums=1))(t, x)
    residual = y - field.ends(t, x).x1
    expected = field(t, x) + (0.6 / 0.4) * torch.einsum("bij,bi->bj", jacobian, residual)
    assert torch.allclose(guided(t, x, y), expected)
    for end in (0.0, 1.0):
        assert bool(torch.isfinite(guided(torch.full((6,), end), x, y)).all())


@pytest.mark.parametrize("of", ["point", "data"])
def test_density_guidance_works_without_gradients_and_under_a_divergence(of) -> None:
    schedule = LinearSchedule()
    likelihood = lambda t, x1, context: -(x1.square().sum(-1) - 1).square()
    field = LogDensityGuided(MLPField(2), likelihood, schedule=schedule, of=of)
    t, x = torch.tensor([0.3, 0.7]), torch.randn(2, 2)
    with torch.no_grad():
        assert torch.equal(field(t, x), field(t, x).detach())
    jacobian = vmap(jacrev(lambda t, z: field(t[None], z[None])[0], argnums=1))(t, x)
    div = Exact()(field, t, x, None, None).div
    assert torch.allclose(div, jacobian.diagonal(dim1=1, dim2=2).sum(-1))
    field(t, x).sum().backward()  # guided fields train as well
    assert all(p.grad is not None for p in field.parameters())


def test_scale_one_is_no_guidance_and_zero_the_null_context_at_one_evaluation_each() -> None:
    t, x, context = points(5)
    net, null = Counting(), torch.tensor([0.5, 0.0, -0.5])
    expected, unconditional = net(t, x, context), net(t, x, null.expand(5, 3))
    net.asked.clear()
    assert torch.equal(ClassifierFree(net, 1.0, null=null)(t, x, context), expected)
    assert torch.equal(ClassifierFree(net, 0.0, null=null)(t, x, context), unconditional)
    assert net.asked == [(5,), (5,)]
    for projected, rescale in ((True, 0.0), (False, 0.7)):
        field = ClassifierFree(net, 1.0, null=null, projected=projected, rescale=rescale)
        assert torch.equal(field(t, x, context), expected)


@pytest.mark.parametrize("batch", [(), (5,), (3, 2)])
def test_both_velocities_come_from_one_batch(batch: tuple[int, ...]) -> None:
    t, x, context = points(*batch)
    net = Counting()
    expected = -1.5 * net(t, x, torch.zeros_like(context)) + 2.5 * net(t, x, context)
    net.asked.clear()
    assert torch.allclose(ClassifierFree(net, 2.5, null=0.0)(t, x, context), expected)
    assert net.asked == [(2 * batch[0], *batch[1:]) if batch else (2,)]
    net.asked.clear()
    nothing = ClassifierFree(net, 2.5, null=None)(t, x, context)  # the net reads it as zeros
    assert torch.allclose(nothing, expected)
    assert net.asked == [batch, batch]


def test_the_interval_is_each_samples_own_and_saves_evaluations() -> None:
    t, x, context = points(4)
    t = torch.tensor([0.1, 0.3, 0.6, 0.9])
    net = Counting()
    inside = ClassifierFree(net, 3.0, null=0.0)(t, x, context)
    field = ClassifierFree(net, 3.0, null=0.0, interval=(0.3, 0.6))
    expected = torch.where(
        torch.tensor([[False], [True], [True], [False]]), inside, net(t, x, context)
    )
    assert torch.allclose(field(t, x, context), expected)
    net.asked.clear()
    field(torch.full((4,), 0.7), x, context)
    assert net.asked == [(4,)]
    half = ClassifierFree(net, 0.0, null=0.0, interval=(0.3, 0.6))(t, x, context)
    assert torch.allclose(half[0], net(t, x, context)[0])
    assert torch.allclose(half[1], net(t, x, torch.zeros(4, 3))[1])


def test_rescaling_keeps_the_spread_and_projection_the_length() -> None:
    t, x, context = points(5)
    net = Counting()
    v, weak = net(t, x, context), net(t, x, torch.zeros(5, 3))
    plain = weak + 4 * (v - weak)
    full = ClassifierFree(net, 4.0, null=0.0, rescale=1.0)(t, x, context)
    assert torch.allclose(full.std(-1), v.std(-1))
    assert torch.allclose(full / plain, (v.std(-1) / plain.std(-1))[:, None].expand(5, 2))
    part = ClassifierFree(net, 4.0, null=0.0, rescale=0.3)(t, x, context)
    assert torch.allclose(part, 0.3 * full + 0.7 * plain)

    def longer(t: Tensor, x: Tensor, c: Tensor | None) -> Tensor:
        assert c is not None
        return net(t, x, c) * torch.where(c[..., :1] == 0, 5.0, 1.0)

    double = FunctionField(longer)
    expected = ClassifierFree(net, 4.0, null=0.0, projected=True)(t, x, context)
    got = ClassifierFree(double, 4.0, null=0.0, projected=True)(t, x, context)
    assert torch.allclose(got, expected)  # a null velocity of five times the length changes nothing
    share = (v * weak).sum(-1, keepdim=True) / weak.square().sum(-1, keepdim=True)
    assert torch.allclose(expected, share * weak + 4 * (v - share * weak))
    still = FunctionField(lambda t, x, c: torch.zeros_like(x))
    for field in (
        ClassifierFree(still, 4.0, null=0.0, projected=True),
        ClassifierFree(still, 4.0, null=0.0, rescale=0.5),
    ):
        assert torch.equal(field(t, x, context), torch.zeros(5, 2))


def test_contexts_of_every_kind_have_a_null() -> None:
    t, x = torch.rand(2), torch.randn(2, 1, 4, 4)
    small = {"width": 8, "layers": 1, "heads": 2}
    labels = DiTField((1, 4, 4), 10, **small)
    sequence = DiTField((1, 4, 4), tokens=3, **small)
    image = UNetField((1, 4, 4), 10, width=8, multipliers=(1,), blocks=1, attention=(), heads=2)
    for field in (labels, sequence, image):
        for parameter in field.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    digit, words, empty = torch.tensor([3, 7]), torch.randn(2, 5, 3), torch.randn(1, 3)
    for field, context, null in (
        (labels, digit, labels.null),
        (labels, digit, None),
        (image, digit, image.null),
        (sequence, words, 0.0),
        (sequence, words, torch.randn(5, 3)),
        (sequence, words, torch.randn(3)),
    ):
        weak = None if null is None else torch.as_tensor(null).to(context).expand(context.shape)
        expected = 2 * field(t, x, context) - field(t, x, weak)
        got = ClassifierFree(field, 2.0, null=null)(t, x, context)
        assert torch.allclose(got, expected)
    expected = 2 * sequence(t, x, words) - sequence(t, x, empty.expand(2, 1, 3))
    assert torch.allclose(ClassifierFree(sequence, 2.0, null=empty)(t, x, words), expected)


def test_the_likelihood_of_a_guided_flow_is_that_of_the_guided_law() -> None:
    """Where all classes are normal with one covariance, guidance moves the mean and no more."""
    centres = torch.tensor([[1.0, -0.5], [-0.5, 0.25]])  # of the class, and without one

    def velocity(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        assert context is not None
        m, s = centres[context], t[..., None]
        return m + (0.25 * s - (1 - s)) * (x - s * m) / ((1 - s) ** 2 + 0.25 * s**2)

    field = ClassifierFree(FunctionField(velocity), 2.5, null=1)
    flow = Flow(Gaussian(2), ODE(field, Dopri5(1e-9, 1e-9)), context_shape=())
    truth = torch.distributions.Normal(centres[1] + 2.5 * (centres[0] - centres[1]), 0.5)
    x = truth.sample((6,))
    expected = truth.log_prob(x).sum(-1)
    assert torch.allclose(flow.log_prob(x, torch.tensor(0)), expected, rtol=0, atol=1e-6)
    # Solving labels together or apart is one and the same: rows leave an adaptive solve alone.
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    with torch.no_grad():
        together = flow.push(x, labels)
        apart = torch.stack([flow.push(a, b) for a, b in zip(x, labels, strict=True)])
    assert torch.allclose(together, apart, rtol=0, atol=1e-7)


def test_autoguidance_goes_away_from_the_weak_field() -> None:
    t, x, context = points(5)
    good, bad = Counting(), Counting()
    expected = bad(t, x, context) + 1.7 * (good(t, x, context) - bad(t, x, context))
    assert torch.allclose(AutoGuided(good, bad, scale=1.7)(t, x, context), expected)
    good.asked.clear()
    bad.asked.clear()
    assert torch.equal(AutoGuided(good, bad, scale=1.0)(t, x, context), good(t, x, context))
    assert bad.asked == []
    assert torch.equal(AutoGuided(good, bad, scale=0.0)(t, x, context), bad(t, x, context))
    late = AutoGuided(good, bad, scale=1.7, interval=(0.5, 1.0))(t, x, context)
    assert torch.allclose(late, torch.where(t[:, None] >= 0.5, expected, good(t, x, context)))
    field = AutoGuided(good, lambda t, x, context: torch.zeros_like(x), scale=2.0)
    assert torch.allclose(field(t, x, context), 2 * good(t, x, context))


@pytest.mark.unchecked
def test_guided_fields_compile_as_one_graph() -> None:
    t, x, context = points(5)
    likelihood = lambda t, x1, context: -(x1 - context[..., :2]).square().sum(-1)
    net = MLPField(2, 3, hidden_features=(8,))
    for field in (
        ClassifierFree(net, 2.0, null=0.0, interval=(0.2, 0.8), rescale=0.5, projected=True),
        AutoGuided(net, MLPField(2, 3), scale=2.0, interval=(0.2, 0.8)),
        LogDensityGuided(net, likelihood, schedule=LinearSchedule(), of="data"),
    ):
        with torch.no_grad():
            graph = torch.compile(field, backend="aot_eager", fullgraph=True)
            assert torch.allclose(graph(t, x, context), field(t, x, context))
            rows = vmap(field)(t, x, context)
            assert torch.allclose(rows, field(t, x, context))


def test_mistakes_are_named() -> None:
    net, (t, x, context) = Counting(), points(5)
    for scale in (-1.0, float("inf"), float("nan")):
        with pytest.raises(DomainError, match="scale must be 0 or positive"):
            ClassifierFree(net, scale, null=0.0)
    for interval in ((0.5, 0.5), (-0.1, 0.5), (0.2, 1.1), (0.9, 0.1)):
        with pytest.raises(DomainError, match="interval must be two rising times"):
            AutoGuided(net, net, scale=2.0, interval=interval)
    with pytest.raises(DomainError, match=r"rescale must lie in \[0, 1\]"):
        ClassifierFree(net, 2.0, null=0.0, rescale=1.5)
    with pytest.raises(DomainError, match="no context to be guided towards"):
        ClassifierFree(net, 2.0, null=0.0)(t, x)
    with pytest.raises(ShapeError, match=r"one context \(3,\), got \(4,\)"):
        ClassifierFree(net, 2.0, null=torch.zeros(4))(t, x, context)
    with pytest.raises(ShapeError, match=r"one context \(3,\), got \(5, 3\)"):
        ClassifierFree(net, 2.0, null=torch.zeros(5, 3))(t, x, context)
    line = FunctionField(lambda t, x, context: x if context is None else x * context)
    with pytest.raises(DomainError, match="rescale needs points of two entries"):
        ClassifierFree(line, 2.0, null=0.0, rescale=1.0)(t, x[:, :1], context[:, :1])
    energy = lambda t, x, context: x.square()
    with pytest.raises(ShapeError, match="one number per sample"):
        LogDensityGuided(net, energy, schedule=LinearSchedule())(t, x, context)
