"""One suite for all bases: normalised, sampled as they say, differentiable, reproducible, saved."""

import math

import pytest
import torch
from laws import LAWS, Law
from scipy.stats import chi2

from cflow import Flow
from cflow.base import Resampled
from cflow.errors import ShapeError
from cflow.transport import Chain

every = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
NODES, CELLS, DRAWS = 800, 10, 50_000


@every
def test_densities_integrate_to_one(law: Law) -> None:
    base = law.make()
    x, area = law.nodes(NODES)
    mass = (base.log_prob(x, law.given(NODES, NODES)).exp() * area).sum().item()
    # a resampled base has its Z from 200,000 proposals, see test_resampled.py for the error
    assert mass == pytest.approx(1.0, abs=5e-3 if isinstance(base, Resampled) else 1e-4)


@every
def test_draws_follow_the_density(law: Law) -> None:
    """Chi-squared over the cells of a grid; false alarm 1e-6."""
    base = law.make()
    x, area = law.nodes(NODES)
    with torch.no_grad():
        mass = base.log_prob(x, law.given(NODES, NODES)).exp() * area
        fine = NODES // CELLS
        expected = DRAWS * mass.reshape(CELLS, fine, CELLS, fine).sum((1, 3)).flatten()
        generator = torch.Generator().manual_seed(1)
        draws = base.sample((DRAWS,), law.given(DRAWS), generator=generator)
    if law.box is not None:
        low, high = torch.tensor(law.box).T
        assert bool(((draws >= low) & (draws <= high)).all())
    counts, enough = law.cells(draws, CELLS).flatten(), expected >= 10
    expected = torch.cat([expected[enough], (DRAWS - expected[enough].sum()).clamp_min(1)[None]])
    counts = torch.cat([counts[enough], counts[~enough].sum()[None]])
    statistic = ((counts - expected).square() / expected).sum().item()
    assert statistic < chi2.isf(1e-6, len(counts) - 1)


REPARAMETERISED = [law for law in LAWS if law.reparameterised and list(law.make().parameters())]


@pytest.mark.parametrize("law", REPARAMETERISED, ids=lambda law: law.name)
def test_gradients_through_draws_are_those_of_the_integral(law: Law) -> None:
    """d/dtheta of E[f(x)], by draws and by the density on a grid; false alarm 1e-6 or less.

    Fifty independent batches give each gradient's mean and standard error: 7.5 of them, with
    Student's tails for 49 degrees of freedom, are exceeded once in 1e9.
    """

    def f(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(1.3 * x[..., 0]) + torch.cos(x[..., 1] + 0.4) * torch.tanh(x[..., 0])

    base = law.make()
    names = [n for n, _ in base.named_parameters() if not any(w in n for w in law.missing)]
    parameters = [dict(base.named_parameters())[name] for name in names]
    x, area = law.nodes(400)
    integral = (base.log_prob(x, law.given(400, 400)).exp() * area * f(x)).sum()
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(integral, parameters)])
    generator, batches = torch.Generator().manual_seed(2), []
    for _ in range(50):
        draws = f(base.sample((1000,), law.given(1000), generator=generator)).mean()
        grads = torch.autograd.grad(draws, parameters)
        batches.append(torch.cat([g.flatten() for g in grads]))
    got = torch.stack(batches)
    assert exact.abs().max() > 1e-2
    assert ((got.mean(0) - exact).abs() <= 7.5 * got.std(0) / 50**0.5 + 1e-4).all()


@every
def test_missing_gradients_raise_nothing(law: Law) -> None:
    base = law.make()
    parameters = list(base.parameters())
    draws = base.sample((50,), law.given(50))
    total = base.log_prob(draws, law.given(50)).sum()
    if total.requires_grad:
        total.backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in parameters)


@every
def test_shapes_and_flows(law: Law) -> None:
    base = law.make()
    for batch in [(), (0,), (2, 3)]:
        draws = base.sample(batch, law.given(*batch))
        assert draws.shape == (*batch, 2)
        assert base.log_prob(draws, law.given(*batch)).shape == batch
    flow = Flow(base, Chain(), context_shape=law.context_shape)
    draws = flow.sample((5,), law.given())
    assert draws.shape == (5, 2)
    assert not draws.requires_grad
    assert flow.log_prob(draws, law.given()).isfinite().all()
    both, log_prob = flow.sample_and_log_prob((5,), law.given())
    assert torch.allclose(log_prob, flow.log_prob(both, law.given()))


@every
def test_one_seed_decides_and_no_other_generator_moves(law: Law) -> None:
    base = law.make()
    before = torch.get_rng_state()
    draws = [
        base.sample((9,), law.given(9), generator=torch.Generator().manual_seed(s))
        for s in (3, 3, 4)
    ]
    base.log_prob(draws[0], law.given(9))
    base.train().log_prob(draws[0], law.given(9))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_draws_follow_the_dtype_and_densities_stay_in_float32(law: Law, dtype: torch.dtype) -> None:
    exact, base = law.make(), law.make().to(dtype)
    given = law.given(100)
    low = given if given is None or not given.is_floating_point() else given.to(dtype)
    draws = base.sample((100,), low)
    assert draws.dtype == dtype
    log_prob = base.log_prob(draws, low)
    assert log_prob.dtype == torch.promote_types(dtype, torch.float32)
    rounding = {torch.bfloat16: 0.15, torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
    if law.box is None or dtype != torch.bfloat16:  # rounded ends differ there
        gap = log_prob.double() - exact.log_prob(draws.double(), given)
        assert gap.abs().mean() < rounding
    assert base.log_prob(draws.double(), low).dtype == torch.float64


@every
def test_the_state_dict_is_the_whole_law(law: Law) -> None:
    base, other = law.make(0), law.make(1)
    x = base.sample((6,), law.given(6))
    other.load_state_dict(base.state_dict())
    assert torch.equal(base.log_prob(x, law.given(6)), other.log_prob(x, law.given(6)))


@every
def test_scores_under_vmap_are_autograds(law: Law) -> None:
    base, given = law.make(), law.given()
    x = base.sample((4,), law.given(4)).detach().requires_grad_()
    total = base.log_prob(x, law.given(4)).sum() + 0.0 * x.sum()  # a uniform density has no graph
    (score,) = torch.autograd.grad(total, x)
    one = torch.func.grad(lambda point: base.log_prob(point, given))
    assert torch.allclose(torch.func.vmap(one)(x.detach()), score)


@every
def test_points_of_another_shape_are_refused(law: Law) -> None:
    with pytest.raises(ShapeError, match=r"must end in shape \(2,\), got \(4, 1\)"):
        law.make().log_prob(torch.zeros(4, 1), law.given(4))


@every
@pytest.mark.unchecked
def test_densities_compile_as_one_graph(law: Law) -> None:
    base, x = law.make(), torch.rand(5, 2)
    torch.compiler.reset()
    compiled = torch.compile(base.log_prob, fullgraph=True, backend="aot_eager")
    expected = base.log_prob(x, law.given(5))
    assert torch.allclose(compiled(x, law.given(5)), expected)
    assert math.isfinite(expected.sum())
