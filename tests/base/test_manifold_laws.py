"""One suite for all laws on manifolds: normalised, sampled as they say, differentiable, saved."""

import pytest
import torch
from manifold_laws import LAWS, ManifoldLaw
from torch import Tensor

from cflow import Flow
from cflow.transport import Chain

every = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
DRAWS, WAVES = 40_000, 40


def waves(law: ManifoldLaw, x: Tensor, count: int = WAVES) -> Tensor:
    """Return cosines along random directions of points, `(m, count)`: functions to average."""
    x, generator = law.lift(x), torch.Generator().manual_seed(5)
    w = torch.randn(x.shape[-1], count, generator=generator, dtype=torch.float64)
    shift = 6 * torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.cos(x @ w + shift)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every
def test_densities_integrate_to_one(law: ManifoldLaw) -> None:
    base = law.make()
    x, volume = law.nodes(base)
    mass = (base.log_prob(x).exp() * volume).sum().item()
    assert mass == pytest.approx(1.0, abs=1e-5)


@every
def test_draws_follow_the_density(law: ManifoldLaw) -> None:
    """Averages of 40 functions against the grid's, at 6.5 standard errors; false alarm 4e-9."""
    base = law.make()
    x, volume = law.nodes(base)
    with torch.no_grad():
        expected = (base.log_prob(x).exp() * volume) @ waves(law, x)
        drawn = waves(law, base.sample((DRAWS,), generator=seeded(1)))
    error = drawn.std(0) / DRAWS**0.5
    assert ((drawn.mean(0) - expected).abs() <= 6.5 * error + 1e-5).all()


LEARNED = [law for law in LAWS if list(law.make().parameters())]


@pytest.mark.parametrize("law", LEARNED, ids=lambda law: law.name)
def test_gradients_through_draws_are_those_of_the_integral(law: ManifoldLaw) -> None:
    """d/dtheta of E[f(x)], by draws and by the density on a grid.

    Twenty-five independent batches give each gradient's mean and standard error: 11 of them, with
    Student's tails for 24 degrees of freedom, are exceeded once in 1e10.
    """
    base = law.make()
    names = [k for k, _ in base.named_parameters() if not any(w in k for w in law.missing)]
    parameters = [dict(base.named_parameters())[name] for name in names]
    x, volume = law.nodes(base)
    integral = (base.log_prob(x).exp() * volume) @ waves(law, x, 1)[:, 0]
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(integral, parameters)])
    generator, batches = seeded(2), []
    for _ in range(25):
        draws = waves(law, base.sample((400,), generator=generator), 1).mean()
        grads = torch.autograd.grad(draws, parameters)
        batches.append(torch.cat([g.flatten() for g in grads]))
    got = torch.stack(batches)
    assert exact.abs().max() > 1e-3
    assert ((got.mean(0) - exact).abs() <= 11 * got.std(0) / 25**0.5 + 1e-4).all()


@every
def test_gradients_of_densities_are_finite(law: ManifoldLaw) -> None:
    for dtype in (torch.float64, torch.float32):
        base = law.make().to(dtype)
        x = base.sample((50,), generator=seeded(0)).detach().requires_grad_()
        (base.log_prob(x).sum() + 0.0 * x.sum()).backward()
        for tensor in (x, *base.parameters()):
            assert tensor.grad is not None
            assert torch.isfinite(tensor.grad).all()


@every
def test_shapes_and_flows(law: ManifoldLaw) -> None:
    base = law.make()
    for batch in [(), (0,), (2, 3)]:
        draws = base.sample(batch)
        assert draws.shape == (*batch, *base.event_shape)
        assert base.log_prob(draws).shape == batch
    flow = Flow(base, Chain())
    x, log_prob = flow.sample_and_log_prob((5,))
    assert torch.allclose(log_prob, flow.log_prob(x))


@every
def test_one_seed_decides_and_no_other_generator_moves(law: ManifoldLaw) -> None:
    base = law.make()
    before = torch.get_rng_state()
    draws = [base.sample((9,), generator=seeded(s)) for s in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_draws_follow_the_dtype_and_densities_stay_in_float32(
    law: ManifoldLaw, dtype: torch.dtype
) -> None:
    exact, base = law.make(), law.make().to(dtype)
    draws = base.sample((100,), generator=seeded(0))
    assert draws.dtype == dtype
    log_prob = base.log_prob(draws)
    assert log_prob.dtype == torch.promote_types(dtype, torch.float32)
    rounding = {torch.bfloat16: 0.2, torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
    assert (log_prob.double() - exact.log_prob(draws.double())).abs().mean() < rounding
    assert base.log_prob(draws.double()).dtype == torch.float64


@every
def test_the_state_dict_is_the_whole_law(law: ManifoldLaw) -> None:
    base, other = law.make(0), law.make(1)
    x = base.sample((6,))
    other.load_state_dict(base.state_dict())
    assert torch.equal(base.log_prob(x), other.log_prob(x))


@every
def test_scores_under_vmap_are_autograds(law: ManifoldLaw) -> None:
    base = law.make()
    x = base.sample((4,), generator=seeded(0)).detach().requires_grad_()
    (score,) = torch.autograd.grad(base.log_prob(x).sum() + 0.0 * x.sum(), x)
    one = torch.func.vmap(torch.func.grad(base.log_prob))
    assert torch.allclose(one(x.detach()), score)


COMPILED = [
    "von Mises-Fisher on S^3",
    "von Mises",
    "projected normal on S^2",
    "wrapped on S^2, oval",
    "wrapped on T^2",
    "wrapped on H^2",
    "wrapped on SO(3)",
    "components",
    "mixture on T^2",
]


@pytest.mark.parametrize(
    "law", [law for law in LAWS if law.name in COMPILED], ids=lambda law: law.name
)
@pytest.mark.unchecked
def test_densities_compile_as_one_graph(law: ManifoldLaw) -> None:
    base = law.make()
    x = base.sample((5,), generator=seeded(0)).detach()
    torch.compiler.reset()
    compiled = torch.compile(base.log_prob, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), base.log_prob(x))
