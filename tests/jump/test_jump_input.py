"""What samplers refuse, and how: errors that name the position and say what to do."""

import pytest
import torch
from torch import Tensor

from cflow.base import EmpiricalTokens, MaskTokens, UniformTokens
from cflow.errors import CflowError, DomainError, ShapeError, expect_tokens
from cflow.jump import (
    AdaptiveJumps,
    Corrected,
    DirectRates,
    EulerJumps,
    FirstHitting,
    JumpFlow,
    JumpSampler,
    MetricPath,
    MixtureSteps,
    NetworkPosterior,
    NoisingPath,
    Restarted,
    TauLeaping,
    jump_matching,
)
from cflow.ode import TimeGrid

MASKS, UNIFORM = MaskTokens(3, 4), UniformTokens(3, 4)
SAMPLERS: list[JumpSampler] = [
    MixtureSteps(4),
    EulerJumps(4),
    TauLeaping(4),
    AdaptiveJumps(),
    FirstHitting(),
    Corrected(MixtureSteps(4)),
]
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)


def flat(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
    return torch.zeros(*x.shape, 4)


FLAT = NetworkPosterior(flat, MASKS)


def refuses(
    sampler: JumpSampler, x0: Tensor, match: str, kind: type[Exception] = DomainError, **options
) -> None:
    rates, base = options.pop("rates", FLAT), options.pop("base", MASKS)
    with pytest.raises(kind, match=match) as caught:
        sampler.sample(rates, x0, base=base, **options)
    assert isinstance(caught.value, CflowError)


@each_sampler
def test_what_no_process_can_start_from_is_refused(sampler) -> None:
    name, x0 = type(sampler).__name__, MASKS.sample((2,))
    refuses(sampler, x0, f"{name}.sample: needs 0 <= start <= end", start=0.6, end=0.2)
    refuses(sampler, x0, "got start=0.0 and end=1.2; a jump process runs from base", end=1.2)
    out = x0.clone()
    out[1, 2] = 7
    refuses(
        sampler, out, r"between 0 and 4, got 7 at index \(1, 2\) \(1 of \d+ tokens are affected\)"
    )
    out[1, 0] = -1
    refuses(sampler, out, r"got -1 at index \(1, 0\) \(2 of 6 tokens")
    refuses(sampler, x0.double(), r"tokens must be integers, got torch.float64; encode")
    refuses(sampler, x0 < 9, r"tokens must be integers, got torch.bool")
    refuses(sampler, x0[:, :2], r"tokens must end in shape \(3,\), got \(2, 2\)", ShapeError)
    refuses(sampler, x0[0], "share one leading batch axis", ShapeError)
    refuses(sampler, x0, "share one leading batch axis", ShapeError, context=torch.zeros(3))
    refuses(sampler, x0, "agree on the states of a token, got 5 of Network", base=UNIFORM)
    refuses(sampler, x0, "fixed must be boolean, True where a token stays", fixed=x0)
    wrong = torch.zeros(5, dtype=torch.bool)
    refuses(sampler, x0, r"broadcast to the tokens \(2, 3\), got \(5,\)", ShapeError, fixed=wrong)


@each_sampler
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_networks_that_answer_no_numbers_are_named_with_the_token(sampler, value) -> None:
    def broken(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        logits = torch.zeros(*x.shape, 4)
        later = (t > 0.5)[:, None] & (x == 4)
        hit = later & (torch.arange(3) == 2)
        return torch.where(hit[..., None] & (torch.arange(4) == 1), value, logits)

    x0 = MASKS.sample((50,))
    x0[:, 0] = 1
    rates = NetworkPosterior(broken, MASKS)
    torch.manual_seed(0)
    where = r"not finite at t=0\.[5-9]\d*, the first is at index \(\d+, 2\) with values such as"
    if value == torch.inf and isinstance(sampler, EulerJumps | TauLeaping | AdaptiveJumps):
        where = where.replace(" with", ".*")  # softmax makes NaN of it
    refuses(sampler, x0, where, rates=rates)
    assert int(sampler.sample(rates, x0, base=MASKS, end=0.4).max()) <= 4  # before, all is well


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_bound_without_numbers_names_the_token(repeats: int) -> None:
    def broken(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        hit = (x == 2)[..., None] & (torch.arange(4) == 1)
        return torch.where(hit, torch.nan, torch.zeros(*x.shape, 4))

    x = torch.zeros(5, 2, 3, dtype=torch.long)
    zeros = EmpiricalTokens(x[0], 4)  # so that what is broken is met on the way to a two alone
    flow = JumpFlow(zeros, NetworkPosterior(broken, zeros))
    assert bool(flow.elbo(x).isfinite().all())
    x[3, 1, 2] = 2
    x = x.repeat(20, 1, 1, 1)  # a two is on its way, and may not be there yet: in one of 20 it is
    match = r"JumpFlow.elbo: .* at index \(\d+, 3, 1, 2\) at t=0\.\d+; check"
    with pytest.raises(DomainError, match=match):
        flow.elbo(x, repeats=repeats)


@each_sampler
def test_networks_of_the_wrong_size_are_named(sampler) -> None:
    short = NetworkPosterior(lambda t, x, context: torch.zeros(*x.shape, 3), MASKS)
    refuses(sampler, MASKS.sample((2,)), r"\(2, 3, 4\), got \(2, 3, 3\)", ShapeError, rates=short)


def test_samplers_refuse_rates_that_they_do_not_know() -> None:
    x0 = UNIFORM.sample((2,))
    direct = DirectRates(flat, 4)
    metric = NetworkPosterior(flat, UNIFORM, MetricPath(1 - torch.eye(4)))
    uniform = NetworkPosterior(flat, UNIFORM)
    for rates in (direct, metric):
        refuses(MixtureSteps(4), x0, "MixturePath or NoisingPath", rates=rates, base=UNIFORM)
        refuses(FirstHitting(), x0, "needs a posterior along a Mix", rates=rates, base=UNIFORM)
    refuses(FirstHitting(), x0, "all start as masks, got Unif", rates=uniform, base=UNIFORM)
    refuses(Corrected(EulerJumps(4)), x0, "needs a posterior, got D", rates=direct, base=UNIFORM)
    along = DirectRates(flat, 4, NoisingPath.of(UNIFORM))
    refuses(MixtureSteps(1), x0, r"needs p\(x1 \| x_t\), got Direct", rates=along, base=UNIFORM)
    refuses(TauLeaping(4, ordinal=True), MASKS.sample((2,)), "a mask is no level")
    free = Restarted(EulerJumps(4))
    refuses(free, x0, "needs rates along a path, got DirectRates", rates=direct, base=UNIFORM)
    refuses(Restarted(MixtureSteps(4)), x0, "only data can be noised back, got end=0.5", end=0.5)


def test_tokens_that_depend_on_each_other_cannot_be_drawn_anew() -> None:
    base = EmpiricalTokens(torch.tensor([[0, 1, 2], [3, 3, 3]]), 4)
    rates, x0 = NetworkPosterior(flat, base), base.sample((2,))
    for sampler in (MixtureSteps(4, refresh=1.0), Corrected(MixtureSteps(4))):
        refuses(sampler, x0, "tokens of the base must be independent", rates=rates, base=base)


def test_rates_that_are_negative_are_named_with_the_token() -> None:
    direct = DirectRates(flat, 4)
    minus = lambda t, x, context=None: torch.where(x[..., None] == 2, -1.0, flat(t, x, context))
    direct.forward = minus  # type: ignore[method-assign]
    x0 = torch.tensor([[0, 1, 3], [0, 3, 2]])
    for sampler in (EulerJumps(4), TauLeaping(4), AdaptiveJumps()):
        refuses(
            sampler,
            x0,
            r"got -1 at t=0 for the token at index \(1, 2\)",
            rates=direct,
            base=UNIFORM,
        )


def test_grids_of_other_ends_and_options_out_of_range_are_refused() -> None:
    x0 = MASKS.sample((2,))
    with pytest.raises(DomainError, match="times must rise"):
        TimeGrid([1.0, 0.5, 0.0])
    other = MixtureSteps(2, TimeGrid([0.0, 0.5, 1.0]))
    refuses(other, x0, "from 0 to 0.5, the ends of the solve", end=0.5)
    with pytest.raises(DomainError, match="steps must be a whole number of at least 1, got 0"):
        EulerJumps(0)
    with pytest.raises(DomainError, match=r"probability must lie in \(0, 1\), got 1"):
        AdaptiveJumps(1.0)
    with pytest.raises(DomainError, match="max_steps must be a whole number"):
        AdaptiveJumps(max_steps=0)
    with pytest.raises(DomainError, match="iterations must be a whole number of at least 0"):
        Corrected(MixtureSteps(4), iterations=-1)
    with pytest.raises(DomainError, match="strength must be 0 or more"):
        Corrected(MixtureSteps(4), strength=-0.1)
    with pytest.raises(DomainError, match="rounds must be a whole number of at least 0"):
        Restarted(MixtureSteps(4), rounds=-1)
    with pytest.raises(DomainError, match=r"back must lie in \(0, 1\), got 1"):
        Restarted(MixtureSteps(4), back=1.0)


@pytest.mark.unchecked
def test_an_option_that_is_no_choice_is_refused() -> None:
    with pytest.raises(DomainError, match="'mean' or 'fastest', got 'median'"):
        AdaptiveJumps(over="median")  # type: ignore[arg-type]
    with pytest.raises(DomainError, match="'random', 'probability' or 'margin', got 'entropy'"):
        FirstHitting(order="entropy")  # type: ignore[arg-type]


def test_data_never_holds_the_mask() -> None:
    x = torch.tensor([[0, 1, 2], [3, 4, 4]])
    with pytest.raises(
        DomainError, match=r"data must not hold the mask, 4, found at index \(1, 1\)"
    ):
        expect_tokens("data", x, (3,), 4, masked=True)
    flow = JumpFlow(MASKS, FLAT)
    for ask in (flow.elbo, lambda x: jump_matching(flow, x)):
        with pytest.raises(
            DomainError, match=r"the mask, 4, found at index \(1, 1\) \(2 of 6 tokens"
        ):
            ask(x)
        with pytest.raises(DomainError, match=r"between 0 and 3, got 9 at index \(0, 2\)"):
            ask(torch.tensor([[0, 1, 9]]))
        with pytest.raises(DomainError, match=r"tokens must be integers, got torch\.float64"):
            ask(torch.zeros(1, 3))
