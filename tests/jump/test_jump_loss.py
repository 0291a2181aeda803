"""Losses of jump flows: their minimum is the path's own rates, and each is what it says."""

import math
from functools import partial

import pytest
import torch
from small_spaces import VOCABULARY, generator
from test_elbo import DATA, ENDS, METRIC, perfect, wrong
from torch import Tensor

from cflow.base import MaskTokens, TokenBase, UniformTokens
from cflow.errors import DomainError, ShapeError
from cflow.field import LinearSchedule
from cflow.jump import (
    CrossEntropy,
    DirectRates,
    GeneralisedKL,
    HammingCost,
    JumpFlow,
    MixturePath,
    NetworkPosterior,
    NoisingPath,
    SquaredRates,
    jump_matching,
    negative_elbo,
)
from cflow.matching import ContextDropout, OTCoupling, PairedCoupling, Stratified, UniformTimes
from cflow.train import Trainer

N = 20_000
LOSSES = {
    "cross-entropy": jump_matching,
    "KL": partial(jump_matching, loss=GeneralisedKL(), times=Stratified(UniformTimes(0.0, 0.9))),
    "squared": partial(jump_matching, loss=SquaredRates()),
    "bound": negative_elbo,
}


def points(n: int = N) -> Tensor:
    return ENDS[torch.multinomial(DATA, n, replacement=True, generator=generator(1))]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("base", [MaskTokens(2, VOCABULARY), UniformTokens(2, VOCABULARY)], ids=str)
@pytest.mark.parametrize("kind", ["mixture", "noising"])
def test_the_true_posterior_is_the_minimum(name: str, base: TokenBase, kind: str) -> None:
    """Every wrong answer loses on the same noise, by more than six standard errors."""
    right, off = perfect(base, LinearSchedule()), wrong(base.states, VOCABULARY)
    path = MixturePath() if kind == "mixture" else NoisingPath.of(base)
    x, values = points(), []
    for share in (0.0, 0.5, -0.5):
        answer = lambda t, x, c, share=share: right(t, x, c) + share * off(t, x, c)
        flow = JumpFlow(base, NetworkPosterior(answer, base, path))
        values.append(LOSSES[name](flow, x, generator=generator(2)))
    for other in values[1:]:
        more = other - values[0]
        assert more.mean() > 6 * more.std() / math.sqrt(N)


def test_direct_rates_and_metric_paths_have_their_minimum_too() -> None:
    base = UniformTokens(2, VOCABULARY)
    answer = perfect(base, LinearSchedule())
    good = NetworkPosterior(answer, base)
    log_rates = lambda t, x, c: good(t, x, c).log()
    for loss in ("KL", "squared", "bound"):
        values = []
        for shift in (0.0, 0.4, -0.4):
            rates = DirectRates(
                lambda t, x, c, shift=shift: log_rates(t, x, c) + shift, 3, MixturePath()
            )
            values.append(LOSSES[loss](JumpFlow(base, rates), points(), generator=generator(2)))
        for other in values[1:]:
            more = other - values[0]
            assert more.mean() > 6 * more.std() / math.sqrt(N)
    flow = JumpFlow(base, NetworkPosterior(wrong(3, 3), base, METRIC))
    assert bool(torch.isfinite(jump_matching(flow, points(50), loss=SquaredRates())).all())


def test_the_generalised_kl_integrates_to_the_bound() -> None:
    """Over uniform times up to 0.9 it is the part of the bound before that time."""
    base = UniformTokens(2, VOCABULARY)
    flow = JumpFlow(base, NetworkPosterior(wrong(3, VOCABULARY), base))
    x, early = ENDS.repeat(4000, 1), UniformTimes(0.0, 0.9)
    found = 0.9 * jump_matching(flow, x, loss=GeneralisedKL(), times=early, generator=generator())
    from cflow.jump.elbo import clock_kl, draw_moments

    moment = draw_moments(flow.rates, base, x, 1, generator=generator(1))
    k = clock_kl(flow.rates, moment.t, moment.x, x).mean(1)
    wanted = torch.where(moment.t < 0.9, moment.weight * k, 0.0)
    error = math.hypot(found.std() / len(x) ** 0.5, wanted.std() / len(x) ** 0.5)
    assert abs(found.mean() - wanted.mean()) < 6 * error


def test_weights_of_times_and_given_times_are_used() -> None:
    base = MaskTokens(2, VOCABULARY)
    flow = JumpFlow(base, NetworkPosterior(wrong(4, VOCABULARY), base))
    x, t = points(200), torch.full((200,), 0.3)
    one = jump_matching(flow, x, t=t, generator=generator())
    assert torch.allclose(
        jump_matching(flow, x, t=t, weight=lambda t: 2 / t, generator=generator()), one * 2 / 0.3
    )
    assert torch.equal(jump_matching(flow, x, t=torch.ones(200)), torch.zeros(200))  # all final
    unsettled = CrossEntropy()(flow.rates, t, torch.full_like(x, 3), x)
    assert bool((unsettled > 0).all())


def test_a_coupling_chooses_the_starts() -> None:
    base = UniformTokens(6, 4)
    seen = []

    def answer(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        seen.append(x)
        return torch.zeros(*x.shape, 4)

    flow = JumpFlow(base, NetworkPosterior(answer, base))
    x0, x1 = (base.sample((64,), generator=generator(k)) for k in (1, 2))
    start = torch.zeros(64)
    jump_matching(flow, x1, x0=x0, coupling=PairedCoupling(), t=start)
    assert torch.equal(seen[-1], x0)
    apart = lambda x: (x != x1).sum()
    jump_matching(flow, x1, x0=x0, coupling=OTCoupling(cost=HammingCost()), t=start)
    assert apart(seen[-1]) < 0.8 * apart(x0)
    assert torch.equal(seen[-1].sort(0)[0], x0.sort(0)[0])


def test_conditions_are_left_out_for_guidance() -> None:
    base, seen = MaskTokens(2, 4), []

    def answer(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        assert context is not None
        seen.append(context)
        return torch.zeros(*x.shape, 4)

    flow = JumpFlow(base, NetworkPosterior(answer, base), context_shape=())
    x, c = torch.randint(4, (1000, 2)), torch.arange(1000) % 7
    for loss in (jump_matching, negative_elbo):
        loss(flow, x, c, dropout=ContextDropout(0.25, null=7), generator=generator())
        assert 150 < int((seen[-1] == 7).sum()) < 350
        kept = seen[-1] != 7
        assert torch.equal(seen[-1][kept], c[kept])


def test_a_training_finds_the_law() -> None:
    """A table of logits, trained by the bound as it is, ends at the entropy of the data."""
    base = MaskTokens(2, VOCABULARY)

    class Table(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = torch.nn.Parameter(torch.zeros(4, 4, 2, VOCABULARY))

        def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
            return self.logits[x[:, 0], x[:, 1]]

    flow = JumpFlow(base, NetworkPosterior(Table(), base))
    Trainer(flow, negative_elbo, steps=150, batch=512, lr=0.1, progress=False).fit(points())
    found = flow.elbo(ENDS, repeats=2000, generator=generator()).detach()
    assert abs(DATA @ (DATA.log() - found)) < 0.02


@pytest.mark.unchecked
def test_bad_input_is_named() -> None:
    base = MaskTokens(3, 4)
    flow = JumpFlow(base, NetworkPosterior(lambda t, x, c: torch.zeros(*x.shape, 4), base))
    x = torch.zeros(2, 3, dtype=torch.long)
    bad = x.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(4))
    for loss in (jump_matching, negative_elbo):
        with pytest.raises(
            DomainError, match=r"must not hold the mask, 4, found at index \(1, 2\)"
        ):
            loss(flow, bad)
        with pytest.raises(DomainError, match="must be integers"):
            loss(flow, x.float())
        with pytest.raises(ShapeError, match="one leading batch axis"):
            loss(flow, x[0])
        with pytest.raises(DomainError, match="takes no context"):
            loss(flow, x, torch.zeros(2))
    direct = JumpFlow(base, DirectRates(lambda t, x, c: torch.zeros(*x.shape, 5), 5, MixturePath()))
    with pytest.raises(DomainError, match="needs a posterior, got DirectRates"):
        jump_matching(direct, x)
    shorter = JumpFlow(base, NetworkPosterior(lambda t, x, c: torch.zeros(*x.shape, 3), base))
    with pytest.raises(ShapeError, match="one logit for each of 4 values"):
        shorter.elbo(x)
