"""Errors of a velocity: closed forms, gradients, and what `matching` makes of them."""

import math

import pytest
import torch
from torch import Tensor, nn

from cflow.errors import DomainError, ShapeError
from cflow.field import CosineSchedule, MLPField, PredictX1
from cflow.matching import (
    AffinePath,
    FeatureError,
    LinearPath,
    PairedCoupling,
    PseudoHuber,
    SquaredError,
    VelocityError,
    matching,
)

ERRORS: list[VelocityError] = [
    SquaredError(),
    PseudoHuber(),
    PseudoHuber(0.3),
    FeatureError(torch.tanh),
    FeatureError(torch.tanh, PseudoHuber(0.3)),
]
errors = pytest.mark.parametrize("error", ERRORS, ids=repr)


def asked(n: int = 5, shape: tuple[int, ...] = (3, 2)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.rand(n), *(torch.randn(n, *shape) for _ in range(3))


@errors
def test_every_error_is_zero_at_the_target_and_counts_each_sample_by_itself(error) -> None:
    t, x, v, target = asked()
    assert torch.equal(error(t, x, target, target), torch.zeros(5))
    value = error(t, x, v, target)
    assert value.shape == (5,)
    assert bool((value > 0).all())
    one = torch.stack([error(t[k : k + 1], x[k : k + 1], v[k : k + 1], target[k : k + 1])[0]
                       for k in range(5)])  # fmt: skip
    assert torch.allclose(value, one, rtol=1e-13)


@errors
def test_gradients_are_those_of_the_formula(error) -> None:
    t, x, v, target = asked(3)
    assert torch.autograd.gradcheck(lambda v: error(t, x, v, target), v.requires_grad_())


def test_the_square_is_the_mean_over_the_entries_of_the_event() -> None:
    t, x, v, target = asked()
    expected = (v - target).square().flatten(1).mean(1)
    assert torch.equal(SquaredError()(t, x, v, target), expected)
    flat = SquaredError()(t, x[:, 0, 0], v[:, 0, 0], target[:, 0, 0])
    assert torch.equal(flat, (v - target).square()[:, 0, 0])


def test_the_square_is_what_matching_has_always_computed() -> None:
    """Bit by bit the expression that stood there before there was a choice."""
    field, x1, x0, t = MLPField(2), torch.randn(64, 2), torch.randn(64, 2), torch.rand(64)
    loss = matching(field, LinearPath(), PairedCoupling(), x1, x0=x0, t=t)
    v = field(t, torch.lerp(x0, x1, t[:, None]))
    before = nn.functional.mse_loss(v, x1 - x0, reduction="none").flatten(1).mean(1)
    assert torch.equal(loss, before)


def test_pseudo_huber_against_its_closed_form() -> None:
    t, x, v, target = asked()
    distance = (v - target).flatten(1).norm(dim=1)
    for c in (1e-3, 0.5, 40.0):
        expected = (distance.square() + c**2).sqrt() - c
        assert torch.allclose(PseudoHuber(c)(t, x, v, target), expected)
    small = 0.00054 * math.sqrt(6)
    assert torch.equal(PseudoHuber()(t, x, v, target), PseudoHuber(small)(t, x, v, target))
    one = PseudoHuber(0.5)(t, x[:, 0, 0], v[:, 0, 0], target[:, 0, 0])  # points are numbers
    assert torch.allclose(one, ((v - target)[:, 0, 0].square() + 0.25).sqrt() - 0.5)


def test_pseudo_huber_keeps_its_digits_near_zero() -> None:
    """There it is |d|^2 / 2c; the difference of the roots would be 0 in float32."""
    zero = torch.zeros(1, 1, dtype=torch.float32)
    value = PseudoHuber(1.0)(zero[0], zero, zero + 1e-5, zero)
    assert value.item() == pytest.approx(5e-11, rel=1e-5)
    assert value.dtype == torch.float32


def test_pseudo_huber_pulls_no_harder_at_a_distance() -> None:
    """Its gradient is d / sqrt(|d|^2 + c^2), at most 1 long."""
    t, x, _, target = asked(4)
    v = (target + torch.tensor([1e-3, 1.0, 1e3, 1e6]).reshape(4, 1, 1) * x).requires_grad_()
    (gradient,) = torch.autograd.grad(PseudoHuber(0.5)(t, x, v, target).sum(), v)
    d = (v - target).detach()
    expected = d / (d.square().sum((1, 2), keepdim=True) + 0.25).sqrt()
    assert torch.allclose(gradient, expected)
    assert bool((gradient.flatten(1).norm(dim=1) <= 1).all())


def test_features_of_the_ends_are_compared_and_linear_ones_have_a_closed_form() -> None:
    """f(x) = A x: the error is |(1 - t) A (v - u)|^2 / features."""
    t, x, v, target = asked(shape=(3,))
    a = torch.randn(4, 3)
    error = FeatureError(lambda x: x @ a.T)
    difference = (1 - t)[:, None] * ((v - target) @ a.T)
    assert torch.allclose(error(t, x, v, target), difference.square().mean(1))
    both = FeatureError(lambda x: (x @ a.T, x.sum(1)))
    rest = ((1 - t) * (v - target).sum(1)).square()
    assert torch.allclose(both(t, x, v, target), difference.square().mean(1) + rest)
    seen: list[Tensor] = []
    FeatureError(lambda x: seen.append(x) or x)(t, x, x, target)  # the true end comes first
    assert torch.allclose(seen[0], x + (1 - t)[:, None] * target)


def test_features_are_not_trained_and_the_field_is() -> None:
    features = nn.Sequential(nn.Linear(2, 8), nn.Tanh())
    before = [p.clone() for p in features.parameters()]
    field = MLPField(2)
    pairs = dict(x0=torch.randn(16, 2), error=FeatureError(features))
    matching(field, LinearPath(), PairedCoupling(), torch.randn(16, 2), **pairs).mean().backward()
    assert all(p.grad is None for p in features.parameters())
    assert all(map(torch.equal, before, features.parameters()))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in field.parameters())


def test_weights_multiply_any_error() -> None:
    field, x0, x1, t = MLPField(2), torch.randn(8, 2), torch.randn(8, 2), torch.rand(8)
    pairs = dict(x0=x0, t=t, error=PseudoHuber(0.1))
    plain = matching(field, LinearPath(), PairedCoupling(), x1, **pairs)
    weighted = matching(field, LinearPath(), PairedCoupling(), x1, weight=lambda t: 3 * t, **pairs)
    assert torch.allclose(weighted, 3 * t * plain)


def test_errors_that_do_not_fit_are_refused() -> None:
    x, curved = torch.zeros(4, 2), AffinePath(CosineSchedule())
    field = lambda t, x, c: x
    seen = FeatureError(torch.tanh)
    with pytest.raises(DomainError, match="FeatureError measures a velocity along LinearPath"):
        matching(field, curved, PairedCoupling(), x, x0=x, error=seen)
    with pytest.raises(DomainError, match=r"PseudoHuber measures a velocity, got PredictX1"):
        matching(
            field, curved, PairedCoupling(), x, x0=x, prediction=PredictX1(), error=PseudoHuber()
        )
    assert matching(field, curved, PairedCoupling(), x, x0=x, error=PseudoHuber()).shape == (4,)
    with pytest.raises(DomainError, match="c must be positive"):
        PseudoHuber(0.0)
    with pytest.raises(ShapeError, match="one row for each of the 4 points"):
        FeatureError(lambda x: x.sum(0))(torch.zeros(4), x, x, x)
