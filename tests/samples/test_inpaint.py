"""Inpainting: observed entries bit by bit, missing ones from their conditional law."""

import pytest
import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError, SolverError
from cflow.field import (
    CosineSchedule,
    FunctionField,
    GaussianMixture,
    LipmanSchedule,
    MixtureField,
    MLPField,
    PathSchedule,
    VPSchedule,
)
from cflow.samples import (
    SDE,
    CurvedEuler,
    CurvedHeun,
    IsotropicCovariance,
    NoiseRefresh,
    TweedieCovariance,
    inpaint,
)

NAN = float("nan")
COVARIANCE = torch.tensor([[1.0, 0.7, 0.5], [0.7, 1.2, 0.2], [0.5, 0.2, 0.8]], dtype=torch.float64)
MEAN = torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)


def oracle(schedule: PathSchedule | None = None) -> MixtureField:
    target = GaussianMixture(MEAN[None], COVARIANCE[None])
    return MixtureField(GaussianMixture(torch.zeros(1, 3)), target, schedule)


def conditional(first: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the last two entries given the first."""
    gain = COVARIANCE[1:, 0] / COVARIANCE[0, 0]
    mean = MEAN[1:] + gain * (first - MEAN[0])
    return mean, COVARIANCE[1:, 1:] - gain[:, None] * COVARIANCE[0, 1:]


def miss(x: Tensor, first: float) -> tuple[float, float]:
    """Largest errors of the mean and the covariance in units of the conditional law's."""
    mean, covariance = conditional(first)
    white = torch.linalg.inv(torch.linalg.cholesky(covariance))
    z = (x[:, 1:] - mean) @ white.mT
    return z.mean(0).abs().max().item(), (z.mT.cov() - torch.eye(2)).abs().max().item()


@pytest.mark.parametrize(
    "sampler",
    [
        CurvedHeun(14),
        CurvedHeun(12),
        CurvedHeun(14, CosineSchedule()),
        CurvedHeun(24, VPSchedule()),
        SDE(20),
    ],
    ids=["linear", "resampled", "cosine", "vp", "sde"],
)
def test_the_missing_entries_follow_their_conditional_law(sampler) -> None:
    """Errors of 1000 samples scatter by 0.032 and 0.045; six of these fail by chance below 1e-8."""
    x = torch.tensor([2.5, NAN, NAN]).expand(1000, 3)
    resamplings = 2 if sampler == CurvedHeun(12) else 1
    drawn = inpaint(
        oracle(sampler.schedule),
        x,
        observed=~x.isnan(),
        sampler=sampler,
        resamplings=resamplings,
    )
    mean, covariance = miss(drawn, 2.5)
    assert mean < 6 * 0.032
    assert covariance < 6 * 0.045 + 0.02  # of the steps


def test_more_steps_make_smaller_errors() -> None:
    """The noise of one seed being the same for all, it cancels in the differences."""
    x = torch.tensor([2.5, NAN, NAN]).expand(200, 3)
    draw = lambda steps: inpaint(
        oracle(),
        x,
        observed=~x.isnan(),
        sampler=CurvedHeun(steps),
        generator=torch.Generator().manual_seed(0),
    ).mT.cov()[1:, 1:]
    few, more, most = draw(4), draw(10), draw(24)
    assert (more - most).abs().max() < 0.4 * (few - most).abs().max()


def test_without_guidance_resamplings_bring_the_missing_entries_nearer() -> None:
    """One run answers to the known entry too late, by half a standard deviation here."""
    x = torch.tensor([2.5, NAN, NAN]).expand(500, 3)
    draw = lambda count: inpaint(
        oracle(),
        x,
        observed=~x.isnan(),
        sampler=CurvedEuler(30),
        covariance=None,
        resamplings=count,
    )
    once, often = miss(draw(1), 2.5), miss(draw(12), 2.5)
    assert once[0] > 0.4
    assert often[0] < 0.5 * once[0]
    assert often[1] < 6 * 0.063 + 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "sampler", [CurvedEuler(4), CurvedHeun(3, LipmanSchedule(0.2)), NoiseRefresh(4)]
)
def test_observed_entries_come_back_bit_by_bit(sampler, dtype: torch.dtype) -> None:
    field = FunctionField(lambda t, x, c: torch.sin(3 * x) - x + 0.1)
    x = torch.randn(20, 2, 3, 3, dtype=dtype)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = -0.0, 1e-42
    given = x.clone()
    for observed, covariance in (
        (torch.rand(20, 2, 3, 3) < 0.5, TweedieCovariance()),
        (torch.rand(3, 3) < 0.5, IsotropicCovariance()),
        (torch.tensor([[[True]], [[False]]]), None),
        (torch.tensor(True), TweedieCovariance()),
    ):
        drawn = inpaint(
            field,
            x,
            observed=observed,
            sampler=sampler,
            covariance=covariance,
            resamplings=2,
            jump=3,
        )
        known = observed.expand(x.shape)
        assert drawn.dtype == dtype
        assert torch.equal(drawn[known], x[known])
        assert torch.equal(drawn[known].signbit(), x[known].signbit())
        assert bool((drawn[~known] != x[~known]).all())
        assert bool(torch.isfinite(drawn).all())
    assert torch.equal(x, given)


def test_nothing_observed_is_a_sample_and_one_seed_decides() -> None:
    x = torch.full((1000, 3), NAN)
    draw = lambda seed, x=x: inpaint(
        oracle(),
        x,
        observed=torch.tensor(False),
        sampler=CurvedHeun(12),
        resamplings=1,
        generator=torch.Generator().manual_seed(seed),
    )
    drawn = draw(0)
    # Errors of mean and covariance as above, against the law of all entries.
    white = torch.linalg.inv(torch.linalg.cholesky(COVARIANCE))
    z = (drawn - MEAN) @ white.mT
    assert bool((z.mean(0).abs() < 6 * 0.032).all())
    assert bool(((z.mT.cov() - torch.eye(3)).abs() < 6 * 0.045 + 0.02).all())
    few = draw(0, x[:5])
    assert torch.equal(few, draw(0, x[:5]))
    assert not torch.equal(few, draw(1, x[:5]))


def test_each_stretch_is_gone_over_and_contexts_arrive() -> None:
    asked: list[float] = []

    def field(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        assert context is not None
        assert torch.equal(context, torch.arange(4))
        asked.append(round(t[0].item(), 6))
        return -x

    x = torch.zeros(4, 2)
    inpaint(
        field,
        x,
        observed=torch.tensor([True, False]),
        context=torch.arange(4),
        sampler=CurvedEuler(4),
        covariance=None,
        resamplings=2,
        jump=3,
    )
    assert asked == [0, 0.25, 0.5, 0, 0.25, 0.5, 0.75, 0.75]


def test_mistakes_are_named() -> None:
    field, x = MLPField(2), torch.zeros(4, 2)
    seen = torch.tensor([True, False])
    with pytest.raises(DomainError, match="observed must be boolean"):
        inpaint(field, x, observed=seen.double())
    with pytest.raises(ShapeError, match=r"broadcast to the points \(4, 2\), got \(3,\)"):
        inpaint(field, x, observed=torch.ones(3, dtype=torch.bool))
    with pytest.raises(DomainError, match="observed entries of x must be finite"):
        inpaint(field, x * NAN, observed=seen)
    for resamplings, jump, iterations in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(DomainError, match="whole number of at least 1"):
            inpaint(
                field,
                x,
                observed=seen,
                resamplings=resamplings,
                jump=jump,
                iterations=iterations,
            )
    with pytest.raises(SolverError, match="not finite"):
        inpaint(FunctionField(lambda t, x, c: x / 0), x, observed=seen, sampler=CurvedEuler(2))


@pytest.mark.unchecked
def test_integers_are_refused() -> None:
    with pytest.raises(DomainError, match="points must be floating"):
        inpaint(MLPField(2), torch.zeros(4, 2, dtype=torch.long), observed=torch.tensor(True))
