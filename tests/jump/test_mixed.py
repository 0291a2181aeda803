"""Tokens and points in one flow, on a law for which the network's answers are known in closed form.

A token k has probability P_k, and x given k is normal about M_k with deviation S in the plane. From
any base of the token and a standard normal one of x, at times a of the token and b of the point,

    p(k | k_a, x_b) ~ P_k p_a(k_a | k) N(x_b; b M_k, b^2 S^2 + (1 - b)^2).

Laws of tokens are held by chi-square tests, those of coordinates by the bound of Dvoretzky, Kiefer
and Wolfowitz; a right sampler fails a test with probability below 1e-6 for each of its checks.
"""

import math
from typing import Literal

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn

from cflow.base import Gaussian, MaskTokens, TokenBase, UniformTokens
from cflow.field import PolynomialSchedule
from cflow.jump import (
    EulerJumps,
    Mixed,
    MixedFlow,
    MixedSteps,
    MixedTimes,
    MixturePath,
    MixtureSteps,
    mixed_matching,
    points_given_tokens,
    tokens_given_points,
)
from cflow.ode import RK4

FALSE_ALARM = 1e-6
P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
M = torch.tensor([[-1.5, 0.0], [0.0, 1.0], [1.5, -0.5]], dtype=torch.float64)
S = 0.5
BASES = {"masks": MaskTokens(1, 3), "uniform": UniformTokens(1, 3)}
SQUARED = MixturePath(PolynomialSchedule(2.0))  # tokens jump later than points move


class Exact(nn.Module):
    """Answer as a perfect network would; offsets are for gradients."""

    def __init__(self, base: TokenBase, path: MixturePath) -> None:
        super().__init__()
        self.base, self.path = base, path
        self.logit, self.push = (nn.Parameter(torch.zeros(1, n)) for n in (3, 2))

    def chances(self, a: Tensor, tokens: Tensor) -> Tensor:
        """Return p_a(k_a | k), `(n, 3)`."""
        ends = [torch.full_like(tokens, k) for k in range(3)]
        laws = [self.path.law(a, end, self.base.marginals()) for end in ends]
        return torch.cat([law.gather(-1, tokens[..., None])[..., 0] for law in laws], -1)

    def forward(
        self, t: Tensor, tokens: Tensor, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        a, b = t[:, 0].clamp_min(1e-6), t[:, 1, None]  # a token may be fixed from the start on
        spread = (b * S).square() + (1 - b).square()
        off = x[:, None] - b[..., None] * M
        logits = self.chances(a, tokens).log() + P.log() - 0.5 * off.square().sum(-1) / spread
        v = M + ((b * S**2 - (1 - b)) / spread)[..., None] * off
        mean = (logits.softmax(-1)[..., None] * v).sum(1)
        return (logits + self.logit)[:, None], mean + self.push


def exact(
    base: TokenBase, path: MixturePath = SQUARED, *, sampler: MixedSteps | None = None
) -> MixedFlow:
    sampler = MixedSteps(MixtureSteps(16), order=2) if sampler is None else sampler
    return MixedFlow(base, Gaussian(2), Exact(base, path), path=path, sampler=sampler)


def drawn(flow: MixedFlow, n: int, t: float) -> Mixed:
    """Draw states of the path at a time."""
    k = torch.multinomial(P, n, replacement=True)[:, None]
    x1 = M[k[:, 0]] + S * torch.randn(n, 2)
    noise = torch.rand(n, 1)
    tokens = flow.path.sample(flow.base_tokens.sample((n,)), k, torch.full((n,), t), noise=noise).x
    return Mixed(tokens, t * x1 + (1 - t) * torch.randn(n, 2))


def expect_shares(tokens: Tensor, p: Tensor) -> None:
    counts = torch.bincount(tokens.flatten(), minlength=len(p))
    assert counts[p == 0].sum() == 0
    wanted = p[p > 0] / p.sum() * len(tokens)
    assert chisquare(counts[p > 0].numpy(), wanted.numpy()).pvalue > FALSE_ALARM


def expect_normal_mixture(x: Tensor, p: Tensor, mean: Tensor, sd: float) -> None:
    """Hold numbers against sum_k p_k N(mean_k, sd^2)."""
    x = x.sort()[0]
    cdf = (torch.special.ndtr((x[:, None] - mean) / sd) * p).sum(-1)
    steps = torch.arange(len(x) + 1) / len(x)
    gap = torch.maximum((cdf - steps[:-1]).abs(), (steps[1:] - cdf).abs()).max().item()
    assert gap < math.sqrt(math.log(2 / FALSE_ALARM) / (2 * len(x))), gap


def expect_law(flow: MixedFlow, z: Mixed, t: float) -> None:
    """Hold a joint law against that of the path at a time."""
    network = flow.network
    assert isinstance(network, Exact)
    states = torch.arange(flow.base_tokens.states)[:, None]
    joint = network.chances(torch.full((len(states),), t), states) * P  # (states, ends)
    expect_shares(z.tokens, joint.sum(1))
    sd = math.sqrt((t * S) ** 2 + (1 - t) ** 2)
    for state, row in enumerate(joint):
        if row.sum() > 0:
            x = z.x[z.tokens[:, 0] == state]
            for axis in range(2):
                expect_normal_mixture(x[:, axis], row / row.sum(), t * M[:, axis], sd)


@pytest.mark.parametrize("end", [0.6, 1.0])
@pytest.mark.parametrize("base", BASES.values(), ids=BASES.keys())
def test_the_joint_law_is_that_of_the_path(base: TokenBase, end: float) -> None:
    flow = exact(base)
    z = Mixed(base.sample((6000,)), torch.randn(6000, 2))
    expect_law(flow, flow.carry(z, end=end), end)


def test_a_run_between_two_times_goes_from_law_to_law() -> None:
    flow = exact(UniformTokens(1, 3), MixturePath())
    expect_law(flow, flow.carry(drawn(flow, 6000, 0.4), start=0.4, end=0.8), 0.8)


def test_other_steps_of_tokens_fit_in() -> None:
    flow = exact(UniformTokens(1, 3), sampler=MixedSteps(EulerJumps(16), order=2))
    expect_law(flow, flow.sample(2000), 1.0)


def test_one_answer_a_step_is_right_to_first_order_and_two_are_nearer() -> None:
    """The mean of x given a token lags by an error that is halved with the step."""

    def errors(steps: int, order: Literal[1, 2]) -> tuple[float, float]:
        flow = exact(MaskTokens(1, 3), sampler=MixedSteps(MixtureSteps(steps), order=order))
        z = flow.sample(40_000)
        x = z.x[z.tokens[:, 0] == 2, 0]
        return (x.mean() - M[2, 0]).item(), (x.std() - S).item()

    once, twice = errors(4, 1)[0], errors(8, 1)[0]
    assert once < -0.3
    assert 1.6 < once / twice < 2.6
    mean, sd = errors(3, 2)
    assert abs(mean) < 0.07
    assert abs(sd) < 0.045  # 0.07 without the extrapolated probabilities


@pytest.mark.parametrize(("base", "steps", "order"), [("masks", 60, 1), ("uniform", 15, 2)])
def test_points_follow_their_law_given_tokens(base: str, steps: int, order: Literal[1, 2]) -> None:
    flow = exact(BASES[base])
    known = torch.tensor([[0], [2]])
    sampler = MixedSteps(MixtureSteps(steps), order=order)
    z = flow.sample(2000, tokens=known, sampler=sampler)
    assert torch.equal(z.tokens, known.expand(2000, 2, 1))
    for row, k in enumerate((0, 2)):
        for axis in range(2):
            expect_normal_mixture(z.x[:, row, axis], torch.ones(1), M[k, axis, None], S)


@pytest.mark.parametrize("base", BASES.values(), ids=BASES.keys())
def test_tokens_follow_their_law_given_points(base: TokenBase) -> None:
    flow = exact(base, sampler=MixedSteps(MixtureSteps(8)))
    known = torch.tensor([0.6, 0.1])
    posterior = (P.log() - 0.5 * (known - M).square().sum(-1) / S**2).softmax(-1)
    assert posterior.max() < 0.7
    z = flow.sample(30_000, points=known)
    assert torch.equal(z.x, known.expand(30_000, 2))
    expect_shares(z.tokens, posterior)


def test_fixed_tokens_stay_and_points_follow_them() -> None:
    """With masks a token says the same at each time, so that a fixed one acts as a known one."""
    flow = exact(MaskTokens(1, 3))
    n = 4000
    tokens = torch.full((n, 1), 3)
    fixed = (torch.arange(n) < n // 2)[:, None]
    tokens[fixed] = 1
    z = flow.carry(Mixed(tokens, torch.randn(n, 2)), fixed=fixed)
    assert bool((z.tokens[fixed] == 1).all())
    for axis in range(2):
        expect_normal_mixture(z.x[: n // 2, axis], torch.ones(1), M[1, axis, None], S)
    expect_law(flow, Mixed(z.tokens[n // 2 :], z.x[n // 2 :]), 1.0)


def test_parts_have_likelihoods_given_each_other() -> None:
    tokens = torch.tensor([[0], [1], [2]])
    x = torch.randn(3, 2)
    points = points_given_tokens(exact(UniformTokens(1, 3))).with_solver(RK4(12))
    own = -0.5 * (x - M).square().sum(-1) / S**2 - 2 * math.log(S) - math.log(2 * math.pi)
    assert torch.allclose(points.log_prob(x, tokens), own, atol=1e-3)
    posterior = (P.log() - 0.5 * (x[:, None] - M).square().sum(-1) / S**2).log_softmax(-1)
    given = tokens_given_points(exact(MaskTokens(1, 3)))
    wanted = posterior.gather(1, tokens)[:, 0]
    assert torch.allclose(given.elbo(tokens, x), wanted, atol=1e-8)  # one token: no jump is unsure
    assert given.sample(4, x).shape == (4, 3, 1)


def test_the_loss_is_least_for_the_true_conditional_means() -> None:
    """Its gradient vanishes there, for rows of all three kinds; five deviations are 6e-7."""
    flow = exact(UniformTokens(1, 3))
    network = flow.network
    assert isinstance(network, Exact)
    n = 20_000
    data = drawn(flow, n, 1.0)
    times = MixedTimes(tokens_known=0.3, points_known=0.3)
    network.logit = nn.Parameter(torch.zeros(n, 3))  # one offset a row: gradients of single rows
    network.push = nn.Parameter(torch.zeros(n, 2))
    mixed_matching(flow, data.tokens, data.x, times=times).sum().backward()
    for gradient in (network.logit.grad, network.push.grad):
        assert gradient is not None
        assert (gradient == 0).all(1).float().mean().item() == pytest.approx(0.3, abs=0.05)
        z = gradient.mean(0) / (gradient.std(0) / n**0.5)
        assert z.abs().max() < 5


def test_terms_are_those_of_the_formula() -> None:
    flow = exact(UniformTokens(1, 3), MixturePath())
    data = drawn(flow, 6, 1.0)
    t = torch.tensor([[1.0, 0.3]] * 3 + [[0.3, 1.0]] * 3)
    loss = mixed_matching(flow, *data, x0=torch.zeros(6, 2), t=t, token_weight=0.0)
    assert torch.equal(loss[3:], torch.zeros(3))
    v = flow(t, data.tokens, 0.3 * data.x)[1]
    assert torch.allclose(loss[:3], (v - data.x).square().mean(1)[:3])
    one, two = (
        mixed_matching(flow, *data, t=t, token_weight=w, generator=torch.Generator().manual_seed(1))
        for w in (1.0, 2.0)
    )
    assert torch.allclose(2 * one[3:], two[3:])
    assert torch.equal(one[:3], two[:3])
    assert (one[3:] > 0).all()


def test_times_go_together_but_for_known_parts() -> None:
    t = MixedTimes(tokens_known=0.2, points_known=0.3).sample(20_000, like=P)
    known = (t == 1).double().mean(0)
    assert torch.allclose(known, torch.tensor([0.2, 0.3]), atol=0.02)  # five deviations: 0.016
    assert not bool((t == 1).all(1).any())
    together = t[(t < 1).all(1)]
    assert torch.equal(together[:, 0], together[:, 1])
