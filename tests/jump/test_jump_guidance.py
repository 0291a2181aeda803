"""Guidance of tokens on spaces so small that every law, conditional or not, is a table."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cflow.base import MaskTokens, TokenBase, UniformTokens
from cflow.errors import DomainError, ShapeError
from cflow.field import PolynomialSchedule
from cflow.jump import (
    ClassifierFreePosterior,
    FirstHitting,
    GuidedRates,
    JumpFlow,
    MetricPath,
    MixturePath,
    MixtureSteps,
    NetworkPosterior,
    NoisingPath,
    Posterior,
    PredictorPosterior,
    PredictorRates,
    Rates,
    TokenMLP,
    TransformerRates,
    enumerate_states,
    law,
)
from cflow.ode import RK4

V, L = 3, 2
SCHEDULE = PolynomialSchedule(2.0)
QUICK = RK4(12)
bases = pytest.mark.parametrize("kind", [MaskTokens, UniformTokens])


def tables() -> Tensor:
    """Return a joint law p(c, x1) of two classes and two tokens, `(2, V, V)`."""
    p = torch.rand(2, V, V, generator=torch.Generator().manual_seed(3)) ** 4
    return p / p.sum()


def weights(table: Tensor, base: TokenBase, path: MixturePath, t: Tensor, x: Tensor) -> Tensor:
    """Return p(x1, x_t), `(n, V ** L)`, for one-hot or other vectors x of each token, `(n, L, S)`.

    Linear in each token, so that p_t(c | x) for one-hot x is a function with a gradient.
    """
    ends = enumerate_states(V, L)
    t = t.clamp_min(1e-6)  # at t = 0 many points never are, and nothing is known about them
    noised = path.law(t, ends.expand(len(t), -1, -1), base.marginals())  # (n, V ** L, L, S)
    return table.reshape(-1) * (noised * x[:, None]).sum(-1).prod(-1)


def perfect(table: Tensor, base: TokenBase, path: MixturePath) -> NetworkPosterior:
    """Return the true posterior; a context picks a class of a table `(2, V, V)`, -1 both."""

    def logits(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        hot = functional.one_hot(x, base.states).to(table)
        if table.dim() == L:
            joint = weights(table, base, path, t, hot)
        else:
            assert context is not None
            each = [weights(k, base, path, t, hot) for k in (*table, table.sum(0))]
            joint = torch.stack(each)[context, torch.arange(len(x))]
        return torch.einsum(
            "np,plv->nlv", joint, functional.one_hot(enumerate_states(V, L)) * 1.0
        ).log()

    return NetworkPosterior(logits, base, path)


def classifier(
    p: Tensor, base: TokenBase, path: MixturePath
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return log p_t(c = 0 | x_t)."""

    def log_likelihood(t: Tensor, z: Tensor, context: Tensor | None) -> Tensor:
        own, other = (weights(table, base, path, t, z).sum(-1) for table in p)
        return own.log() - (own + other).log()

    return log_likelihood


def on_the_way(table: Tensor, base: TokenBase, path: MixturePath, t: float) -> Tensor:
    """Return the law of the points of paths to a table of data at one time."""
    times, x = everywhere(base, t)
    return weights(table, base, path, times, functional.one_hot(x, base.states) * 1.0).sum(-1)


def everywhere(base: TokenBase, t: float = 0.4) -> tuple[Tensor, Tensor]:
    x = enumerate_states(base.states, L)
    return torch.full((len(x),), t), x


def chain(posterior: Posterior, base: TokenBase) -> Posterior:
    """Return rates that make a Markov process of all data: those of masks are such already."""
    return posterior if base.absorbing else posterior.along(NoisingPath.of(base, SCHEDULE))


@bases
def test_the_true_predictor_gives_the_rates_and_the_law_of_the_condition(kind) -> None:
    base = kind(L, V)
    p, path = tables(), MixturePath(SCHEDULE)
    model = chain(perfect(p.sum(0), base, path), base)
    wanted = chain(perfect(p[0] / p[0].sum(), base, path), base)
    guided = PredictorRates(model, classifier(p, base, path), taylor=False, chunk=5)
    for t in (0.1, 0.5, 0.9):
        u = guided(*everywhere(base, t))
        assert torch.allclose(u, wanted(*everywhere(base, t)), rtol=1e-9)
        assert (u - model(*everywhere(base, t))).abs().max() > 0.05
    if not base.absorbing:
        return  # these rates grow without limit as t falls to 0, which takes `law` half a minute
    there = law(guided, base, t1=0.9, solver=QUICK)
    assert torch.allclose(there, on_the_way(p[0] / p[0].sum(), base, path, 0.9), atol=1e-4)


@bases
def test_a_guided_posterior_is_that_of_the_condition(kind) -> None:
    base = kind(L, V)
    p, path = tables(), MixturePath(SCHEDULE)
    model = chain(perfect(p.sum(0), base, path), base)
    wanted = perfect(p[0] / p[0].sum(), base, path)
    guided = PredictorPosterior(model, classifier(p, base, path), taylor=False)
    for t in (0.05, 0.5, 0.95):
        asked = everywhere(base, t)
        ours, theirs = guided.probabilities(*asked), wanted.probabilities(*asked)
        assert torch.allclose(ours, theirs, atol=1e-9)
    if not base.absorbing:  # at t = 0 it is asked a moment later, where data has a share of 1e-3
        start = everywhere(base, 0.0)
        assert torch.allclose(guided.probabilities(*start), wanted.probabilities(*start), atol=2e-3)
    flow = JumpFlow(base, guided, sampler=MixtureSteps(4))
    assert int(flow.sample(100).max()) < V
    assert flow.elbo(torch.zeros(4, L, dtype=torch.long)).shape == (4,)


def test_along_a_mixture_from_uniform_tokens_a_predictor_is_nearly_right() -> None:
    base, p, path = UniformTokens(L, V), tables(), MixturePath()
    guided = PredictorPosterior(
        perfect(p.sum(0), base, path), classifier(p, base, path), taylor=False
    )
    t = 0.95
    wanted, before = (on_the_way(k, base, path, t) for k in (p[0] / p[0].sum(), p.sum(0)))
    ends = law(guided, base, t1=t, solver=QUICK)
    off, all_of_it = ((a - wanted).abs().sum() / 2 for a in (ends, before))
    assert 0.01 * all_of_it < off < 0.3 * all_of_it


@bases
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_the_series_is_exact_for_predictors_that_are_linear_in_tokens(kind, scale) -> None:
    base = kind(L, V)
    path, table = MixturePath(), torch.randn(L, base.states)
    linear = lambda t, z, context: t * (z * table).sum((-1, -2))
    model = chain(perfect(tables().sum(0), base, path), base)
    for kind in (PredictorPosterior, PredictorRates):
        one, each = (kind(model, linear, scale=scale, taylor=taylor) for taylor in (True, False))
        with torch.no_grad():
            series, exact = one(*everywhere(base)), each(*everywhere(base))
        assert torch.allclose(series, exact, rtol=1e-9)
    curved = lambda t, z, context: (z * table).sum((-1, -2)).square()
    one, each = (PredictorRates(model, curved, taylor=taylor) for taylor in (True, False))
    assert not torch.allclose(one(*everywhere(base)), each(*everywhere(base)), rtol=1e-2)


def test_the_series_takes_one_evaluation_and_the_exact_way_one_for_each_jump() -> None:
    base, asked = MaskTokens(L, V), []

    def count(t: Tensor, z: Tensor, context: Tensor | None) -> Tensor:
        asked.append(len(z))
        return z[..., 0].sum(-1)

    model = perfect(tables().sum(0), base, MixturePath())
    t, x = torch.full((2,), 0.5), torch.tensor([[V, V], [0, V]])
    PredictorPosterior(model, count)(t, x)
    assert asked == [2]
    asked.clear()
    PredictorPosterior(model, count, taylor=False, chunk=4)(t, x)
    assert asked == [2, 4, 4, 1]  # three masks can become three values each


@bases
def test_batches_of_any_shape_and_contexts_reach_the_predictor(kind) -> None:
    base = kind(L, V)
    shape = (2, 3)
    said = lambda t, z, context: context * z[..., 1].sum(-1) + t
    net = NetworkPosterior(lambda t, x, c: torch.zeros(*x.shape, V), base)
    t, x, context = torch.rand(shape), base.sample(shape), torch.rand(shape)
    for taylor in (True, False):
        guided = PredictorRates(net, said, taylor=taylor)
        u = guided(t, x, context)
        for row in ((0, 0), (1, 2)):
            assert torch.allclose(u[row], guided(t[row], x[row], context[row]))
            assert torch.allclose(u[row], guided(t[row][None], x[row][None], context[row][None])[0])


def test_far_ratios_give_finite_rates() -> None:
    base = MaskTokens(L, V)
    net = NetworkPosterior(lambda t, x, c: torch.zeros(*x.shape, V), base)
    for sure in (-1e4, 1e4):
        steep = lambda t, z, context, sure=sure: sure * z[..., 1].sum(-1)
        assert PredictorRates(net, steep)(*everywhere(base)).isfinite().all()
        assert PredictorPosterior(net, steep)(*everywhere(base)).isfinite().all()


def conditional(base: TokenBase) -> TransformerRates:
    net = TransformerRates(L, base.states, V, classes=2, width=16, layers=1, heads=2)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return net


@bases
def test_without_a_classifier_scales_0_and_1_are_the_model_bit_for_bit(kind) -> None:
    base = kind(L, V)
    net = conditional(base)
    model = NetworkPosterior(net, base)
    t, x, label = torch.rand(6), base.sample((6,)), torch.randint(2, (6,))
    assert isinstance(net.null, int)
    null = torch.full_like(label, net.null)
    for guided in (ClassifierFreePosterior, GuidedRates):
        assert torch.equal(guided(model, 1.0, null=net.null)(t, x, label), model(t, x, label))
        assert torch.equal(guided(model, 0.0, null=net.null)(t, x, label), model(t, x, null))
    both = ClassifierFreePosterior(model, 2.0, null=net.null).logits(t, x, label).softmax(-1)
    log_p, weak = (model.logits(t, x, c).log_softmax(-1) for c in (label, null))
    assert torch.allclose(both, (2 * log_p - weak).softmax(-1))
    u = GuidedRates(model, 3.0, null=net.null)(t, x, label)
    wanted = model(t, x, label) ** 3 / model(t, x, null).clamp_min(1e-100) ** 2
    assert torch.allclose(u, wanted)


def test_a_larger_scale_sharpens_and_samplers_take_it() -> None:
    base, p, path = MaskTokens(L, V), tables(), MixturePath()
    model, label, t = perfect(p, base, path), torch.tensor(0), 0.9
    right = functional.pad(p[0] / p.sum(0), (0, 1, 0, 1)).flatten()  # p(c = 0 | x1), 0 with masks

    def share(rates: Rates, context: Tensor | None = label) -> Tensor:
        return law(rates, base, t1=t, context=context, solver=QUICK) @ right

    weak, given, strong = (
        share(ClassifierFreePosterior(model, s, null=-1)) for s in (0.0, 1.0, 2.0)
    )
    for found, table in ((weak, p.sum(0)), (given, p[0] / p[0].sum())):
        assert torch.isclose(found, on_the_way(table, base, path, t) @ right, atol=1e-4)
    assert weak + 0.05 < given < strong - 0.01
    assert share(GuidedRates(model, 2.0, null=-1)) > given + 0.01
    plain = perfect(p.sum(0), base, path)
    by_predictor = PredictorRates(plain, classifier(p, base, path), scale=2.0, taylor=False)
    assert share(by_predictor, None) > given + 0.01
    flow = JumpFlow(base, ClassifierFreePosterior(model, 2.0, null=-1), context_shape=())
    for sampler in (MixtureSteps(4), FirstHitting()):
        assert int(flow.sample(50, label, sampler=sampler).max()) < V


def test_one_evaluation_of_twice_the_batch() -> None:
    base, asked = UniformTokens(L, V), []

    def net(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        asked.append((len(x), None if context is None else context.tolist()))
        return torch.zeros(*x.shape, V)

    model = NetworkPosterior(net, base)
    t, x, label = torch.rand(2), base.sample((2,)), torch.tensor([0, 1])
    ClassifierFreePosterior(model, 2.0, null=7)(t, x, label)
    GuidedRates(model, 2.0, null=None)(t, x, label)
    assert asked == [(4, [0, 1, 7, 7]), (2, [0, 1]), (2, None)]


def test_what_never_happens_stays_so_and_nan_is_not_hidden() -> None:
    base = UniformTokens(1, V)
    answer = torch.tensor([[0.0, -torch.inf, 1.0], [0.0, 1.0, -torch.inf]])
    model = NetworkPosterior(lambda t, x, c: answer[c][:, None], base)
    t, x, label = torch.rand(1), torch.tensor([[0]]), torch.tensor([0])
    guided = ClassifierFreePosterior(model, 3.0, null=1)
    assert guided.logits(t, x, label).isneginf().tolist() == [[[False, True, True]]]
    assert GuidedRates(model, 3.0, null=1)(t, x, label)[0, 0, 1:].tolist() == [0.0, 0.0]
    answer[0, 0] = torch.nan
    assert guided.logits(t, x, label).isnan().any()


def test_bad_input_is_refused() -> None:
    base = UniformTokens(L, V)
    model = NetworkPosterior(TokenMLP(L, V, V, context=2, hidden_features=(8,)), base)
    said = lambda t, z, context: z.sum((-1, -2))
    for build in (
        lambda: ClassifierFreePosterior(model, -1.0, null=0.0),
        lambda: GuidedRates(model, -0.5, null=0.0),
        lambda: PredictorPosterior(model, said, scale=-1.0),
        lambda: PredictorRates(model, said, scale=float("inf")),
    ):
        with pytest.raises(DomainError, match="scale must be 0 or positive"):
            build()
    with pytest.raises(DomainError, match="chunk must be a whole number"):
        PredictorRates(model, said, chunk=0)
    t, x = torch.rand(2), base.sample((2,))
    with pytest.raises(DomainError, match="no context to be guided towards"):
        ClassifierFreePosterior(model, 2.0, null=0.0)(t, x)
    with pytest.raises(ShapeError, match=r"one context \(2,\), got \(3,\)"):
        GuidedRates(model, 2.0, null=torch.zeros(3))(t, x, torch.zeros(2, 2))
    each = lambda t, z, context: z.sum(-1)
    for taylor in (True, False):
        with pytest.raises(ShapeError, match=r"one log-probability for each sample, \(2,\)"):
            PredictorRates(model, each, taylor=taylor)(t, x, torch.zeros(2, 2))
    far = NetworkPosterior(lambda t, x, c: torch.zeros(1), base, MetricPath(1 - torch.eye(V)))
    with pytest.raises(DomainError, match="take PredictorRates"):
        PredictorPosterior(far, said)
