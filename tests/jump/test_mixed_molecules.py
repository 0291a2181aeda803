"""Networks of molecules turn with them; flows of molecules draw, learn, and refuse bad input."""

import math
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import cflow
from cflow.base import Gaussian, MaskTokens, MeanFreeGaussian, UniformTokens
from cflow.errors import CheckpointError, DomainError, ShapeError, SolverError
from cflow.jump import (
    Mixed,
    MixedEGNN,
    MixedFlow,
    MixedSteps,
    MixedTimes,
    MixtureSteps,
    mixed_matching,
    points_given_tokens,
    tokens_given_points,
)
from cflow.matching import ContextDropout
from cflow.train import Trainer


def molecules(n: int = 7, *, context: int = 0) -> tuple[MixedFlow, Tensor, Mixed, Tensor | None]:
    torch.manual_seed(1)
    network = MixedEGNN(5, 4, context, hidden_features=8, layers=2)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    flow = MixedFlow(
        MaskTokens(6, 4),
        MeanFreeGaussian((6, 3)),
        network,
        context_shape=(context,) if context else None,
        sampler=MixedSteps(MixtureSteps(3)),
    )
    x = flow.base_points.sample((n,))
    given = torch.randn(n, context) if context else None
    return flow, torch.rand(n, 2), Mixed(torch.randint(5, (n, 6)), x), given


@pytest.mark.parametrize("reflect", [False, True])
def test_networks_turn_with_molecules_and_logits_stay(reflect: bool) -> None:
    flow, t, (tokens, x), context = molecules(context=2)
    logits, v = flow(t, tokens, x, context)
    q = torch.linalg.qr(torch.randn(3, 3)).Q
    q = q * torch.linalg.det(q).sign() * (-1 if reflect else 1)
    order = torch.randperm(6)
    turned = x[:, order] @ q.mT + torch.randn(7, 1, 3)
    same, w = flow(t, tokens[:, order], turned, context)
    assert logits.std() > 0.1
    assert v.abs().max() > 0.1
    assert torch.allclose(same, logits[:, order], atol=1e-10)
    assert torch.allclose(w, v[:, order] @ q.mT, atol=1e-10)
    assert v.mean(1).abs().max() < 1e-12


def test_networks_see_tokens_both_times_and_the_context() -> None:
    flow, t, (tokens, x), context = molecules(context=2)
    assert context is not None
    answers = [
        flow(t, tokens, x, context),
        flow(t, (tokens + 1) % 5, x, context),
        flow(t * torch.tensor([1.0, 0.5]), tokens, x, context),
        flow(t * torch.tensor([0.5, 1.0]), tokens, x, context),
        flow(t, tokens, x, -context),
    ]
    for other in answers[1:]:
        for a, b in zip(answers[0], other, strict=True):
            assert (a - b).abs().max() > 1e-3


def test_molecules_are_drawn_centred_and_again_by_the_seed() -> None:
    flow, _, _, context = molecules(context=2)
    assert context is not None
    draw = lambda: flow.sample((2, 3), context[:4], generator=torch.Generator().manual_seed(5))
    a, b = draw(), draw()
    assert a.tokens.shape == (2, 3, 4, 6)
    assert a.x.shape == (2, 3, 4, 6, 3)
    assert a.tokens.max() < 4
    assert a.x.mean(-2).abs().max() < 1e-12
    assert all(torch.equal(u, v) for u, v in zip(a, b, strict=True))
    assert flow.sample((), context[0]).x.shape == (6, 3)
    assert flow.sample(0, context[0]).x.shape == (0, 6, 3)


def test_a_trainer_takes_the_loss_as_it_is() -> None:
    flow, _, _, _ = molecules(30)
    network = flow.network
    assert isinstance(network, MixedEGNN)
    nn.init.zeros_(network.head[-1].weight)  # type: ignore[arg-type]
    x = flow.base_points.sample((60,))
    tokens = torch.full((60, 6), 2)
    result = Trainer(flow, mixed_matching, steps=25, batch=20, lr=2e-2, log_every=1).fit(
        (tokens, x)
    )
    losses = [figures["loss"] for figures in result.history]
    assert losses[-1] < 0.7 * losses[0]
    drawn = flow.sample(20).tokens
    assert (drawn == 2).double().mean() > 0.8


def test_a_condition_can_be_dropped() -> None:
    flow, _, (_, x), context = molecules(context=2)
    tokens = torch.randint(4, (7, 6))
    loss = lambda c, dropout: mixed_matching(
        flow, tokens, x, c, dropout=dropout, generator=torch.Generator().manual_seed(3)
    )
    plain, dropped = loss(context, None), loss(context, ContextDropout(1.0))
    assert not torch.allclose(plain, dropped)


def test_bad_states_are_named() -> None:
    flow, _, (_, x), _ = molecules()
    tokens = torch.randint(4, (7, 6))
    bad = tokens.clone()
    bad[2, 3] = 9
    with pytest.raises(DomainError, match=r"got 9 at index \(2, 3\)"):
        mixed_matching(flow, bad, x)
    bad[2, 3] = 4
    with pytest.raises(DomainError, match=r"must not hold the mask, 4, found at index \(2, 3\)"):
        mixed_matching(flow, bad, x)
    with pytest.raises(DomainError, match="must not hold the mask"):
        flow.sample((), tokens=bad)
    flow.carry(Mixed(bad, x))  # on the way it may
    with pytest.raises(DomainError, match=r"must be integers, got torch\.float64"):
        mixed_matching(flow, tokens.double(), x)
    with pytest.raises(DomainError, match="must lie on MeanFree"):
        mixed_matching(flow, tokens, x + 1.0)
    with pytest.raises(DomainError, match="must lie on MeanFree"):
        flow.sample(2, points=x + 1.0)
    with pytest.raises(DomainError, match=r"points must be finite, got nan at index \(1, 0, 0\)"):
        mixed_matching(flow, tokens, x.index_fill(0, torch.tensor(1), torch.nan))
    with pytest.raises(ShapeError, match="one leading batch axis"):
        mixed_matching(flow, tokens[:3], x)
    with pytest.raises(ShapeError, match=r"points must end in shape \(6, 3\)"):
        mixed_matching(flow, tokens, x[:, :5])
    with pytest.raises(ShapeError, match=r"t must hold times of tokens and of points, \(7, 2\)"):
        mixed_matching(flow, tokens, x, t=torch.rand(7))
    with pytest.raises(DomainError, match="times must lie in"):
        mixed_matching(flow, tokens, x, t=torch.full((7, 2), 1.5))
    with pytest.raises(DomainError, match="token_weight must be 0 or more"):
        mixed_matching(flow, tokens, x, token_weight=-1.0)


def test_bad_runs_are_refused() -> None:
    flow, _, z, _ = molecules()
    with pytest.raises(DomainError, match=r"needs 0 <= start <= end <= 1, got start=0\.5 and"):
        flow.carry(z, start=0.5, end=0.2)
    with pytest.raises(DomainError, match="fixed must be boolean"):
        flow.carry(z, fixed=torch.ones(6))
    with pytest.raises(
        ShapeError, match=r"fixed must broadcast to the tokens \(7, 6\), got \(5,\)"
    ):
        flow.carry(z, fixed=torch.ones(5, dtype=torch.bool))
    with pytest.raises(DomainError, match="both known"):
        flow.sample((), tokens=z.tokens, points=z.x)
    with pytest.raises(DomainError, match=r"takes no context, got \(7, 2\)"):
        flow.sample((), torch.zeros(7, 2))
    conditioned, _, z, context = molecules(context=2)
    with pytest.raises(DomainError, match="needs a context, got None"):
        conditioned.carry(z)
    assert context is not None
    with pytest.raises(ShapeError, match="one context for each state"):
        conditioned.carry(z, context[:3])
    with pytest.raises(ShapeError, match="must broadcast"):
        conditioned.sample(2, context, points=z.x[:3])
    for part in (points_given_tokens, tokens_given_points):
        with pytest.raises(DomainError, match="takes the place of the context"):
            part(conditioned)


def test_bad_options_are_refused() -> None:
    with pytest.raises(DomainError, match="shares must be 0 or more"):
        MixedTimes(tokens_known=0.7, points_known=0.6)
    with pytest.raises(DomainError, match="context must be 0 or more"):
        MixedEGNN(5, 4, -1)
    with pytest.raises(DomainError, match="hidden_features must be positive"):
        MixedEGNN(5, 4, hidden_features=0)
    network = MixedEGNN(5, 4, hidden_features=4, layers=1)
    t, tokens, x = torch.rand(2, 2), torch.zeros(2, 6, dtype=torch.long), torch.zeros(2, 6, 3)
    with pytest.raises(ShapeError, match="one token for each point"):
        network(t, tokens[:, :4], x)
    with pytest.raises(DomainError, match="expected none, got one of shape"):
        network(t, tokens, x, torch.zeros(2, 3))


@pytest.mark.unchecked
def test_there_are_two_orders() -> None:
    with pytest.raises(DomainError, match="order must be 1 or 2, got 3"):
        MixedSteps(order=3)  # type: ignore[arg-type]


class Odd(nn.Module):
    """Answer with logits of one value too many, or with velocities that are no numbers."""

    def __init__(self, *, wide: bool = False, logit: float = 0.0, speed: float = 0.0) -> None:
        super().__init__()
        self.wide, self.logit, self.speed = wide, logit, speed

    def forward(
        self, t: Tensor, tokens: Tensor, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        logits = torch.full((*tokens.shape, 3 + self.wide), self.logit)
        return logits, torch.full_like(x, self.speed)


@pytest.mark.parametrize("order", [1, 2])
def test_bad_answers_of_a_network_are_named(order: Literal[1, 2]) -> None:
    def drawn(**odd: float) -> Mixed:
        flow = MixedFlow(MaskTokens(1, 3), Gaussian(2), Odd(**odd))  # type: ignore[arg-type]
        return flow.sample(4, sampler=MixedSteps(MixtureSteps(4), order=order))

    assert drawn().x.shape == (4, 2)
    with pytest.raises(ShapeError, match=r"must return logits \(4, 1, 3\)"):
        drawn(wide=True)
    with pytest.raises(SolverError, match="velocity of 4 of 4 samples is not finite at t=0"):
        drawn(speed=math.nan)
    with pytest.raises(DomainError, match="not finite"):
        drawn(logit=math.nan)


def test_known_tokens_stay_whatever_the_network_says() -> None:
    flow = MixedFlow(UniformTokens(5, 3), Gaussian(2), Odd())
    tokens = torch.randint(3, (40, 5))
    assert torch.equal(flow.sample((), tokens=tokens).tokens, tokens)
    fixed = torch.tensor([True, False, True, True, False])
    z = flow.carry(Mixed(tokens, torch.randn(40, 2)), fixed=fixed)
    assert torch.equal(z.tokens[:, fixed], tokens[:, fixed])
    assert not torch.equal(z.tokens, tokens)


def test_a_saved_flow_comes_back_into_one_of_its_build(tmp_path: Path) -> None:
    flow, t, z, _ = molecules()
    flow.save(tmp_path / "flow")
    other = molecules()[0]
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert not torch.equal(other(t, *z)[1], flow(t, *z)[1])
    assert cflow.load(tmp_path / "flow", into=other) is other
    assert torch.equal(other(t, *z)[1], flow(t, *z)[1])
    with pytest.raises(CheckpointError, match="into=flow"):
        cflow.load(tmp_path / "flow")
