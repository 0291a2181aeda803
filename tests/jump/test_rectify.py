"""Rectified pairs and distilled steps: two dependent tokens, drawn in one step or two."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cflow.base import MaskTokens, TokenBase, UniformTokens
from cflow.errors import DomainError, ShapeError
from cflow.jump import (
    DirectRates,
    FirstHitting,
    JumpFlow,
    LatentSteps,
    MixturePath,
    MixtureSteps,
    NetworkPosterior,
    Posterior,
    TokenMLP,
    enumerate_states,
    rectified_matching,
    state_index,
    step_distillation,
    token_pairs,
)
from cflow.matching import StepTimes
from cflow.train import Trainer

V, M = 4, 8
ENDS = enumerate_states(V, 2)


def data() -> Tensor:
    """Return a table of two tokens that are equal with probability 0.925, `(V, V)`."""
    return (0.9 * torch.eye(V) + 0.025) / V


def perfect(base: TokenBase) -> JumpFlow:
    """Return a flow with the true posterior."""

    def logits(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        t = t.clamp(1e-9, 1 - 1e-9)
        noised = MixturePath().law(t, ENDS.expand(len(t), -1, -1), base.marginals())
        seen = noised.gather(-1, x[:, None, :, None].expand(*noised.shape[:-1], 1))[..., 0].prod(-1)
        hot = functional.one_hot(ENDS) * 1.0
        return torch.einsum("np,plv->nlv", data().flatten() * seen, hot).log()

    return JumpFlow(base, NetworkPosterior(logits, base))


class Table(nn.Module):
    """A row of logits for each state of both tokens, and each label."""

    def __init__(self, states: int, labels: int = 1) -> None:
        super().__init__()
        self.states = states
        self.rows = nn.Parameter(0.1 * torch.randn(states**2, labels, 2 * V))

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        rows = self.rows[state_index(x, self.states)]
        label = torch.ones(len(x), 1) if context is None else context
        return torch.einsum("nmv,nm->nv", rows, label).reshape(len(x), 2, V)


def after_one_step(flow: JumpFlow, context: Tensor | None = None) -> Tensor:
    """Return the law of x1 in one step from the base, a mean over starts and labels."""
    x0 = enumerate_states(V, 2) if isinstance(flow.base, UniformTokens) else torch.full((1, 2), V)
    if context is not None:
        x0 = x0.expand(len(context), 2)
    assert isinstance(flow.rates, Posterior)
    p = flow.rates.logits(torch.zeros(len(x0)), x0, context).softmax(-1)
    return torch.einsum("nv,nw->vw", p[:, 0], p[:, 1]) / len(x0)


def off(law: Tensor) -> float:
    return (law - data()).abs().sum().item() / 2


def fitted(flow: JumpFlow, loss: Callable[..., Tensor], *batch: Tensor) -> JumpFlow:
    Trainer(flow, loss, steps=60, batch=128, lr=0.3, progress=False).fit(batch)
    return flow


def test_one_step_after_rectification_is_nearer_to_the_data() -> None:
    base = UniformTokens(2, V)
    flow = perfect(base)
    assert off(after_one_step(flow)) > 0.65
    x0, x1 = token_pairs(flow, 4000, sampler=MixtureSteps(16), chunk=1500)
    loss = partial(rectified_matching, times=StepTimes(1))
    student = JumpFlow(base, NetworkPosterior(Table(V), base))
    assert off(after_one_step(fitted(student, loss, x1, x0))) < 0.58
    shuffled = JumpFlow(base, NetworkPosterior(Table(V), base))
    assert off(after_one_step(fitted(shuffled, loss, x1, x0.roll(1, 0)))) > 0.63


@pytest.mark.parametrize("labels", [1, M])
def test_one_step_of_a_student_with_labels_has_the_law_of_many(labels) -> None:
    base = MaskTokens(2, V)
    student = JumpFlow(base, NetworkPosterior(Table(V + 1, labels), base))
    x1 = torch.multinomial(data().flatten(), 2000, replacement=True)
    loss = partial(
        step_distillation,
        teacher=perfect(base),
        steps=1,
        latents=labels,
        sampler=FirstHitting(),
    )
    law = after_one_step(fitted(student, loss, ENDS[x1]), torch.eye(labels))
    if labels == 1:  # what self-distillation alone can reach
        assert off(law) > 0.6
    else:
        assert off(law) < 0.15


def test_two_steps_of_a_student_with_labels_are_nearer_than_two_of_its_teacher() -> None:
    base = MaskTokens(2, V)
    teacher = perfect(base)
    student = JumpFlow(
        base, NetworkPosterior(Table(V + 1, M), base), sampler=LatentSteps(2, latents=M)
    )
    x1 = ENDS[torch.multinomial(data().flatten(), 2000, replacement=True)]
    fitted(student, partial(step_distillation, teacher=teacher, steps=2, latents=M), x1)

    def law(flow: JumpFlow) -> Tensor:
        x = flow.sample(20_000)
        return torch.bincount(state_index(x, V), minlength=V**2).reshape(V, V) / len(x)

    before = off(law(teacher.with_sampler(MixtureSteps(2))))
    assert before > 0.3  # both tokens come at once in half of the cases
    assert off(law(student)) < before - 0.08


def test_pairs_are_those_of_the_flow_and_leave_its_mode_alone() -> None:
    base = UniformTokens(2, V)
    net = TokenMLP(2, V, V, context=3, hidden_features=(8,))
    flow = JumpFlow(base, NetworkPosterior(net, base), context_shape=(3,)).train()
    context = torch.randn(10, 3)
    draw = lambda chunk: token_pairs(
        flow, 10, context=context, chunk=chunk, generator=torch.Generator().manual_seed(0)
    )
    x0, x1 = draw(4)
    assert x0.shape == x1.shape == (10, 2)
    assert all(torch.equal(a, b) for a, b in zip((x0, x1), draw(4), strict=True))
    assert flow.training
    assert rectified_matching(flow, x1, x0, context).shape == (10,)
    kept = JumpFlow(
        base, NetworkPosterior(lambda t, x, c: -1e9 * functional.one_hot(x, V).eq(0), base)
    )
    a, b = token_pairs(kept, 50)
    assert torch.equal(a, b)


def test_conditions_go_before_the_labels() -> None:
    base, seen = MaskTokens(2, V), []

    def net(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        seen.append(context)
        return torch.zeros(*x.shape, V, requires_grad=True)

    flow = JumpFlow(base, NetworkPosterior(net, base), context_shape=(2,))
    teacher = JumpFlow(base, NetworkPosterior(lambda t, x, c: torch.zeros(*x.shape, V), base))
    x1, context = torch.randint(V, (3, 2)), torch.rand(3, 2)
    value = step_distillation(flow, x1, context, teacher=teacher, steps=1, latents=2)
    assert torch.allclose(value, torch.full((3,), V * 1.0).log())  # uniform in both tokens
    assert torch.equal(seen[-1][:, :2], context.repeat(2, 1))
    assert seen[-1][:, 2:].tolist() == [[1, 0]] * 3 + [[0, 1]] * 3
    flow.sample(4, context[0], sampler=LatentSteps(1, latents=2))
    assert torch.equal(seen[-1][:, :2], context[:1].expand(4, 2))
    assert torch.equal(seen[-1][:, 2:].sum(1), torch.ones(4))


def test_bad_input_is_refused() -> None:
    masks, uniform = perfect(MaskTokens(2, V)), perfect(UniformTokens(2, V))
    with pytest.raises(DomainError, match="all starts are masks"):
        token_pairs(masks, 10)
    with pytest.raises(DomainError, match="n must be a whole number"):
        token_pairs(uniform, 0)
    with pytest.raises(DomainError, match="the flow takes no context"):
        token_pairs(uniform, 2, context=torch.zeros(2, 1))
    asks = JumpFlow(uniform.base, uniform.rates, context_shape=(1,))
    with pytest.raises(ShapeError, match=r"each of 4 pairs, got \(2, 1\)"):
        token_pairs(asks, 4, context=torch.zeros(2, 1))
    x1 = torch.zeros(3, 2, dtype=torch.long)
    with pytest.raises(DomainError, match="need a base of masks"):
        step_distillation(uniform, x1, teacher=masks, steps=2)
    rates = DirectRates(lambda t, x, c: torch.zeros(1), V + 1, MixturePath())
    with pytest.raises(DomainError, match="DirectRates along MixturePath"):
        step_distillation(JumpFlow(masks.base, rates), x1, teacher=masks, steps=2)
    with pytest.raises(DomainError, match=r"the mask, 4, found at index \(0, 0\)"):
        step_distillation(masks, x1 + V, teacher=masks, steps=2)
    with pytest.raises(ShapeError, match="conditions must be vectors"):
        step_distillation(masks, x1, torch.zeros(3), teacher=masks, steps=2)
