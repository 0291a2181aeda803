"""Importance-weighted bounds: they rise with the draws, to the truth, and say how sure they are."""

import math

import pytest
import torch
from torch import Tensor

from cflow import Flow, importance
from cflow.base import Gaussian
from cflow.errors import DomainError
from cflow.field import Hutchinson, MLPField
from cflow.importance import importance_bound
from cflow.metrics import bits_per_dim
from cflow.nets import MLP
from cflow.ode import Euler
from cflow.transport import ODE, Affine, Chain, CouplingLayer, Dequantize, Inverse, Logit

SCALE, SHIFT, ALPHA = 1.3, 0.4, 0.05


def known(features: int = 2, levels: int = 3) -> tuple[Flow, Tensor, Tensor]:
    """Build a flow, all its points, and their log-probabilities."""
    parts = Chain(Affine(SCALE, SHIFT), Inverse(Logit(ALPHA)), Dequantize(levels))
    s = ALPHA + (1 - 2 * ALPHA) * torch.arange(levels + 1.0) / levels
    law = torch.distributions.Normal(SHIFT, SCALE).cdf(torch.logit(s)).diff().log()
    x = torch.cartesian_prod(*[torch.arange(levels)] * features)
    return Flow(Gaussian(features), parts), x, law[x].sum(-1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_it_rises_with_the_draws_to_the_truth() -> None:
    flow, x, truth = known()
    gaps = []
    for samples in (1, 4, 16, 64):
        many = x.expand(500, *x.shape)
        bound = importance_bound(flow, many, samples=samples, generator=seeded()).value.mean(0)
        gaps.append((truth - bound).mean().item())
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 8 * gaps[3] > 0
    assert gaps[3] < 0.01


def test_the_error_is_honest_and_the_bits_are_those_of_the_law() -> None:
    """Of 9 points none is off by 5 standard errors: a false alarm in 1e5 seeds."""
    flow, x, truth = known()
    bound = importance_bound(flow, x, samples=4000, generator=seeded())
    assert bool(((bound.value - truth).abs() < 5 * bound.error).all())
    assert bool((bound.error < 0.02).all())
    bits = bits_per_dim(bound.value, flow.event_shape)
    torch.testing.assert_close(bits, -truth / (2 * math.log(2)), atol=0.02, rtol=0)
    spread = torch.stack(
        [importance_bound(flow, x, samples=100, generator=seeded(k)).value for k in range(200)]
    ).std(0)
    stated = importance_bound(flow, x, samples=100, generator=seeded(999)).error
    # The deviation of 200 values is known to 5 %, that of 100 draws to about 10 %.
    torch.testing.assert_close(spread, stated, rtol=0.5, atol=0)


def test_chunks_change_the_memory_and_not_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    flow, x, truth = known()
    seen = []
    inner = Flow.log_prob

    def counted(self: Flow, points: Tensor, *rest: object, **named: object) -> Tensor:
        seen.append(points[..., 0].numel())
        return inner(self, points, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(importance.Flow, "log_prob", counted)
    for chunk in (1, 5, 100, 100_000):
        seen.clear()
        bound = importance_bound(flow, x, samples=50, chunk=chunk, generator=seeded())
        assert max(seen) <= max(chunk, 1)
        assert sum(seen) == 50 * len(x)
        assert bool(((bound.value - truth).abs() < 5 * bound.error + 0.02).all())


def test_contexts_go_with_their_points() -> None:
    layer = CouplingLayer([False, True], MLP(1, 2, context=1))
    flow = Flow(Gaussian(2), Chain(layer, Inverse(Logit(ALPHA)), Dequantize(3)), context_shape=(1,))
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, context = torch.randint(3, (4, 2)), torch.randn(5, 1, 1)
    both = importance_bound(flow, x, context, samples=2000, chunk=1000, generator=seeded())
    assert both.value.shape == (5, 4)
    one = importance_bound(flow, x[2], context[3, 0], samples=2000, generator=seeded(1))
    spread = (both.error[3, 2] ** 2 + one.error**2) ** 0.5
    assert abs(both.value[3, 2] - one.value) < 5 * spread
    assert importance_bound(flow, x[:0], context).value.shape == (5, 0)


def test_an_exact_flow_is_evaluated_once() -> None:
    flow = Flow(Gaussian(2), Affine(2.0))
    x = torch.randn(3, 2)
    value, error = importance_bound(flow, x, samples=7)
    assert torch.equal(value, flow.log_prob(x))
    assert torch.equal(error, torch.zeros(3))


def test_an_estimate_is_no_bound() -> None:
    solve = ODE(MLPField(2, hidden_features=(8,)), Euler(2), divergence=Hutchinson())
    flow = Flow(Gaussian(2), Chain(solve, Inverse(Logit()), Dequantize(4)))
    with pytest.raises(DomainError, match="no unbiased density"):
        importance_bound(flow, torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(DomainError, match="samples must be positive"):
        importance_bound(known()[0], torch.zeros(1, 2, dtype=torch.long), samples=0)
