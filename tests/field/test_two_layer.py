"""The closed form of the two-layer field's divergence, against its autograd Jacobian."""

import pytest
import torch
from torch import Tensor

from cflow.errors import DomainError
from cflow.field import TwoLayerField
from cflow.nets import Activation, activate, activate_with_slope

activations = pytest.mark.parametrize("activation", ["tanh", "softplus", "silu"])


def away(features: int, context: int = 2, **options) -> TwoLayerField:
    """Build a field with every parameter away from its initialisation."""
    field = TwoLayerField(features, context, hidden_features=(12, 9), **options)
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return field


def draw(*batch: int, features: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.rand(batch), torch.randn(*batch, features), torch.randn(*batch, 2)


@activations
@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("features", range(1, 8))
def test_the_closed_form_is_the_autograd_trace(
    activation: Activation, features: int, linear: bool
) -> None:
    """To rounding: 1e-15 of the sum of the absolute terms of the trace."""
    field = away(features, activation=activation, linear=linear)
    t, x, context = draw(6, features=features)
    v, div = field.with_divergence(t, x, context)
    assert torch.equal(v, field(t, x, context)) or torch.allclose(v, field(t, x, context), 1e-14)
    scale = (field.second.weight * (field.first.weight @ field.last.weight).mT).abs().sum()
    for k in range(6):
        jacobian = torch.autograd.functional.jacobian(
            lambda z, k=k: field(t[k : k + 1], z[None], context[k : k + 1])[0], x[k]
        )
        assert abs(div[k] - jacobian.trace()) < 1e-15 * scale
        assert abs(div[k]) > 1e-4


@pytest.mark.parametrize("batch", [(), (0,), (3,), (2, 3)], ids=str)
def test_any_batch_axes_with_and_without_context(batch: tuple[int, ...]) -> None:
    for context in (0, 2):
        field = away(3, context)
        t, x, c = draw(*batch, features=3)
        given = c if context else None
        v, div = field.with_divergence(t, x, given)
        flat = field.with_divergence(
            t.reshape(-1), x.reshape(-1, 3), None if given is None else given.reshape(-1, 2)
        )
        assert v.shape == (*batch, 3)
        assert div.shape == batch
        assert torch.allclose(v.reshape(-1, 3), flat[0], rtol=0, atol=1e-14)
        assert torch.allclose(div.reshape(-1), flat[1], rtol=0, atol=1e-13)


@activations
def test_double_backward(activation: Activation) -> None:
    field, (t, x, context) = away(3, activation=activation), draw(2, features=3)
    for tensor in (t, x, context):
        tensor.requires_grad_()
    run = lambda *given: field.with_divergence(*given)[1]
    assert torch.autograd.gradcheck(run, (t, x, context), atol=1e-6)
    assert torch.autograd.gradgradcheck(run, (t, x, context), atol=1e-5)
    grads = torch.autograd.grad(
        run(t, x, context).sum(), list(field.parameters()), allow_unused=True
    )
    named = dict(zip([name for name, _ in field.named_parameters()], grads, strict=True))
    for name in ("first.weight", "second.weight", "last.weight", "shift.weight", "linear.weight"):
        assert bool((named[name] != 0).any()), name


@activations
def test_slopes_are_the_derivatives_of_the_activations(activation: Activation) -> None:
    z = torch.linspace(-30, 30, 1001, requires_grad=True)
    value, slope = activate_with_slope(activation, z)
    (expected,) = torch.autograd.grad(activate(activation, z).sum(), z)
    assert torch.allclose(value, activate(activation, z), rtol=0, atol=1e-14)
    assert torch.allclose(slope, expected, rtol=0, atol=1e-14)


def test_an_ode_starts_as_the_identity() -> None:
    field, (t, x, context) = TwoLayerField(3, 2), draw(4, features=3)
    v, div = field.with_divergence(t, x, context)
    assert not v.any()
    assert not div.any()


def test_other_depths_are_refused_in_words() -> None:
    for widths in ((8,), (8, 8, 8), (8, 0)):
        with pytest.raises(DomainError, match="MLPField with Exact"):
            TwoLayerField(2, hidden_features=widths)
