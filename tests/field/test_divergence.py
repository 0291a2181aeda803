"""Divergences against autograd Jacobians, closed forms and statistics with a stated error rate."""

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from cflow.errors import DomainError
from cflow.field import (
    Analytic,
    Divergence,
    Exact,
    FunctionField,
    Hutchinson,
    MLPField,
    TwoLayerField,
)
from cflow.manifold import Sphere
from cflow.ode import RK4
from cflow.state import tracked
from cflow.transport import ODE


def field(features: int = 4) -> MLPField:
    made = MLPField(features, 2, hidden_features=(9, 7))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def inputs(batch: int = 5, features: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    return torch.rand(batch), torch.randn(batch, features), torch.randn(batch, 2)


def jacobians(v: MLPField, t: Tensor, x: Tensor, context: Tensor) -> Tensor:
    """Return the Jacobian at each point by autograd, row by row."""
    return torch.stack(
        [
            torch.autograd.functional.jacobian(
                lambda z, k=k: v(t[k : k + 1], z[None], context[k : k + 1])[0], x[k]
            )
            for k in range(len(x))
        ]
    )


CHUNKS = [Exact(chunk=c) for c in (None, 1, 2, 3, 4, 9)] + [Exact(memory=m) for m in (1e-9, 64.0)]


@pytest.mark.parametrize("exact", CHUNKS, ids=str)
def test_exact_is_the_trace_and_the_norm_of_the_autograd_jacobian(exact: Exact) -> None:
    v, (t, x, context) = field(), inputs()
    rates = exact(v, t, x, context, None, frobenius=True)
    jacobian = jacobians(v, t, x, context)
    assert torch.equal(rates.v, v(t, x, context))
    assert torch.allclose(rates.div, jacobian.diagonal(dim1=1, dim2=2).sum(-1), rtol=0, atol=1e-13)
    assert torch.allclose(rates.frobenius, jacobian.square().sum((1, 2)), rtol=1e-13)
    assert exact(v, t, x, context, None).frobenius is None


@pytest.mark.parametrize("event", [(), (1,), (7,), (2, 3), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("batch", [(), (0,), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("divergence", [Exact(), Exact(chunk=2), Hutchinson(), Hutchinson(3)])
def test_any_event_and_batch_shape(
    divergence: Divergence, batch: tuple[int, ...], event: tuple[int, ...]
) -> None:
    """v = x^3 has a diagonal Jacobian, so random signs are exact too."""
    x = torch.randn((*batch, *event))
    noise = divergence.draw(x, len(batch), None)
    rates = divergence(lambda t, z, c: z**3, torch.rand(batch), x, None, noise, frobenius=True)
    slopes = (3 * x.square()).reshape(*batch, -1) if x.numel() else torch.zeros((*batch, 1))
    assert rates.v.shape == x.shape
    assert torch.allclose(rates.div, slopes.sum(-1))
    assert torch.allclose(rates.frobenius, slopes.square().sum(-1))


@pytest.mark.parametrize("divergence", [Exact(), Exact(chunk=3), Hutchinson(), Hutchinson(2)])
def test_under_vmap_without_gradients_and_with_double_backward(divergence: Divergence) -> None:
    v, (t, x, context) = field(), inputs()
    noise = divergence.draw(x, 1, None)
    whole = divergence(v, t, x, context, noise, frobenius=True)
    with torch.no_grad():
        plain = divergence(v, t, x, context, noise, frobenius=True)
    rows = [row[:, None] for row in (t, x, context)]  # vmap sees batches of one
    rows += [] if noise is None else [noise[:, None]]
    mapped = torch.func.vmap(
        lambda a, b, c, e=None: divergence(v, a, b, c, e, frobenius=True).div
    )(*rows)  # fmt: skip
    assert torch.allclose(plain.div, whole.div, rtol=0, atol=1e-13)
    assert torch.allclose(mapped[:, 0], whole.div, rtol=0, atol=1e-13)

    def value(z: Tensor) -> Tensor:
        rates = divergence(v, t, z, context, noise, frobenius=True)
        return torch.cat([rates.div, rates.frobenius])

    z = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(value, (z,), atol=1e-6)
    assert torch.autograd.gradgradcheck(value, (z,), atol=1e-5)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    "divergence", [Exact(), Exact(chunk=3), Hutchinson(), Hutchinson(2), Analytic()], ids=str
)
def test_compiles_as_one_graph_with_its_gradient(divergence: Divergence) -> None:
    torch.compiler.reset()
    v, (t, x, context) = TwoLayerField(4, 2, hidden_features=(9, 7)), inputs()
    torch.nn.init.normal_(v.last.weight)
    noise = divergence.draw(x, 1, None)
    frobenius = not isinstance(divergence, Analytic)

    def run(z: Tensor) -> tuple[Tensor, ...]:
        return tuple(divergence(v, t, z, context, noise, frobenius=frobenius)[: 2 + frobenius])

    frames = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(run, fullgraph=True, backend=frames)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    for got, expected in zip(compiled(ours), run(theirs), strict=True):
        assert torch.allclose(got, expected, rtol=0, atol=1e-12)
    (mine,) = torch.autograd.grad(compiled(ours)[1].sum(), ours)
    (eager,) = torch.autograd.grad(run(theirs)[1].sum(), theirs)
    assert torch.allclose(mine, eager, rtol=0, atol=1e-12)
    assert frames.frame_count == 1


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
@torch.no_grad()
def test_hutchinson_estimates_trace_and_norm_without_bias(law) -> None:
    """Means of 40 000 probes at 20 points, as z-scores: beyond 5.5 by chance below 2e-6."""
    v, (t, x, context) = field(), inputs(20)
    exact = Exact()(v, t, x, context, None, frobenius=True)
    many = 40_000
    estimator = Hutchinson(noise=law)
    wide = [part.expand(many // 20, *part.shape) for part in (t, x, context)]
    traces, norms = [], []
    for _ in range(20):
        noise = estimator.draw(wide[1], 2, None)
        rates = estimator(v, *wide, noise, frobenius=True)
        traces.append(rates.div)
        norms.append(rates.frobenius)
    for parts, truth in ((traces, exact.div), (norms, exact.frobenius)):
        draws = torch.cat(parts)
        z = (draws.mean(0) - truth) / (draws.std(0) / many**0.5)
        assert z.abs().max() < 5.5
        assert (draws.std(0) > 0).all()


def test_several_probes_are_the_mean_of_single_ones() -> None:
    v, (t, x, context) = field(), inputs()
    noise = Hutchinson(3).draw(x, 1, None)
    together = Hutchinson(3)(v, t, x, context, noise, frobenius=True)
    alone = [Hutchinson()(v, t, x, context, noise[:, k : k + 1], frobenius=True) for k in range(3)]
    for k in (1, 2):
        mean = torch.stack([rates[k] for rates in alone]).mean(0)
        assert torch.allclose(together[k], mean, rtol=0, atol=1e-12)


def test_the_default_chunk_follows_the_batch_and_the_event() -> None:
    """4 MiB on a CPU at 4 max(256, D) numbers a cotangent: 512 rows of float64, 1024 of float32."""
    wide = lambda batch, size, dtype: Exact()._chunk(torch.zeros(1, dtype=dtype), size, size, batch)
    assert wide(50, 64, torch.float32) == 16  # 20 fit; four equal chunks
    assert wide(500, 64, torch.float32) == 2
    assert wide(50, 8, torch.float64) == 8
    assert wide(5000, 64, torch.float32) == 1
    assert wide(1, 3072, torch.float32) == 84  # 85 fit; 37 near-equal chunks


def test_options_that_contradict_or_make_no_sense_are_refused() -> None:
    for wrong in ({"chunk": 0}, {"memory": 0.0}, {"memory": -1.0}, {"chunk": 2, "memory": 1.0}):
        with pytest.raises(DomainError, match="Exact"):
            Exact(**wrong)
    with pytest.raises(DomainError, match="probes must be at least 1, got 0"):
        Hutchinson(probes=0)


def test_analytic_refuses_other_fields_and_norms_in_words() -> None:
    t, x, _ = inputs()
    with pytest.raises(DomainError, match=r"AnalyticField in flat space, got MLPField.*Exact\(\)"):
        Analytic()(MLPField(4), t, x, None, None)
    with pytest.raises(DomainError, match="no Frobenius norm"):
        Analytic()(TwoLayerField(4), t, x, None, None, frobenius=True)
    sphere = ODE(TwoLayerField(3), RK4(2), manifold=Sphere(), divergence=Analytic())
    with pytest.raises(DomainError, match="got a projected field"):
        sphere.push(tracked(torch.eye(3)))


def test_an_ode_takes_the_closed_form_where_there_is_one() -> None:
    assert ODE(TwoLayerField(3)).divergence == Analytic()
    assert ODE(TwoLayerField(3), manifold=Sphere()).divergence == Exact()
    assert ODE(MLPField(3)).divergence == Exact()
    assert ODE(FunctionField(lambda t, x, context: x)).divergence == Exact()
    assert ODE(TwoLayerField(3), divergence=Hutchinson()).divergence == Hutchinson()


@pytest.mark.parametrize("features", [2, 5, 7, 40])
def test_an_exact_trace_is_the_same_bit_for_bit_in_any_batch(features: int) -> None:
    """Chunks follow the batch, the sum of the trace must not."""
    field = FunctionField(lambda t, x, context: torch.sin(3 * x + t[..., None]) - x.flip(-1))
    x, t = torch.randn(1000, features), torch.rand(1000)
    whole = Exact()(field, t, x, None, None).div
    for rows in (1, 2, 9, 300):
        assert torch.equal(Exact()(field, t[:rows], x[:rows], None, None).div, whole[:rows])
