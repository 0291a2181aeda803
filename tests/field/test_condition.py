"""Time and context as a network sees them: published waves, null values, errors in words."""

import math

import pytest
import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError
from cflow.field import Condition, FourierTime, MLPField, SinusoidalTime, TimeEmbedding


def test_sinusoidal_time_is_that_of_diffusion_steps() -> None:
    t, k = torch.rand(5), torch.arange(64)
    phase = (1000 * t)[:, None] * torch.exp(-math.log(10_000) * k / 64)
    expected = torch.cat([phase.sin(), phase.cos()], dim=-1)
    assert torch.allclose(SinusoidalTime(64)(t), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_no_two_times_look_alike(scale: float) -> None:
    t = torch.linspace(0, 1, 201)
    gaps = torch.cdist(*2 * [SinusoidalTime(32, scale=scale)(t)])
    assert bool((gaps[~torch.eye(201).bool()] > 1e-3).all())


def test_phases_survive_a_cast_to_low_precision() -> None:
    """Rounded to bfloat16, the frequency 1000 10000^(-1/8) alone would be off by half a radian."""
    time, t = SinusoidalTime(8), torch.tensor([0.5, 0.75])
    low = time.to(torch.bfloat16)(t.bfloat16())
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.double(), time(t), rtol=0, atol=5e-3)
    assert time(t.float()).dtype == torch.float32


def test_a_field_takes_any_time_and_activation_and_keeps_its_layout() -> None:
    class Plain(TimeEmbedding):
        def forward(self, t: Tensor) -> Tensor:
            return t[..., None].expand(*t.shape, self.features)

    t, x = torch.rand(4), torch.randn(4, 2)
    for time in (None, Plain(3), SinusoidalTime(4)):
        assert MLPField(2, time=time)(t, x).shape == (4, 2)
    torch.manual_seed(0)
    first = MLPField(2)
    torch.manual_seed(0)
    second = MLPField(2, time=FourierTime(8), activation="silu")
    assert first.state_dict().keys() == second.state_dict().keys()
    assert torch.equal(first(t, x), second(t, x))
    torch.manual_seed(0)
    assert not torch.allclose(MLPField(2, activation="tanh")(t, x), first(t, x))


def test_low_precision_fields_return_the_dtype_of_their_points() -> None:
    field = MLPField(2).to(torch.bfloat16)
    assert field(torch.rand(4).float(), torch.randn(4, 2).float()).dtype == torch.float32


def test_null_labels_are_no_context() -> None:
    condition, t = Condition(8, SinusoidalTime(4), classes=3), torch.rand(4)
    plain = condition(t)
    assert condition.null == 3
    for null in (3, -1, -7):
        assert torch.equal(condition(t, torch.full((4,), null)), plain)
    each = torch.stack([condition(t, torch.full((4,), k)) for k in range(4)])
    gaps = (each[:, None] - each).abs().amax((-1, -2))
    assert bool((gaps[~torch.eye(4).bool()] > 1e-3).all())


def test_null_vectors_are_no_context() -> None:
    condition, t = Condition(8, SinusoidalTime(4), context=2), torch.rand(2, 3)
    assert condition.null == 0.0
    assert torch.equal(condition(t, torch.zeros(2, 3, 2)), condition(t))
    assert not torch.allclose(condition(t, torch.ones(2, 3, 2)), condition(t))
    assert Condition(8, SinusoidalTime(4)).null is None


def test_bad_contexts_are_refused_in_words() -> None:
    t = torch.rand(4)
    labelled, plain = Condition(8, SinusoidalTime(4), classes=3), Condition(8, SinusoidalTime(4))
    steered = Condition(8, SinusoidalTime(4), context=2)
    with pytest.raises(DomainError, match="between 0 and 2, or be 3 for none, got 4"):
        labelled(t, torch.tensor([0, 4, 1, 2]))
    with pytest.raises(DomainError, match=r"labels must be integers, got torch\.float64"):
        labelled(t, torch.zeros(4))
    with pytest.raises(ShapeError, match=r"labels of shape \(3,\) and times of \(4,\)"):
        labelled(t, torch.zeros(3, dtype=torch.long))
    with pytest.raises(DomainError, match=r"no context here, got one of shape \(4, 2\)"):
        plain(t, torch.zeros(4, 2))
    with pytest.raises(ShapeError, match=r"context must end in shape \(4, 2\), got \(4, 3\)"):
        steered(t, torch.zeros(4, 3))
    with pytest.raises(DomainError, match="got features=8, classes=3, context=2"):
        Condition(8, SinusoidalTime(4), classes=3, context=2)
    with pytest.raises(DomainError, match="got features=0, classes=0, context=0"):
        Condition(0, SinusoidalTime(4))
    with pytest.raises(DomainError, match="SinusoidalTime: frequencies must be at least 1, got 0"):
        SinusoidalTime(0)
    with pytest.raises(DomainError, match="FourierTime: frequencies must be at least 1, got 0"):
        FourierTime(0)
    with pytest.raises(DomainError, match="SinusoidalTime: scale must be positive"):
        SinusoidalTime(scale=0.0)
