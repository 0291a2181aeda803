"""The face of a flow: shapes with context, kinds of likelihood, saving, and errors in words."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import cflow
from cflow import Flow, State, nll, recipes, tracked
from cflow.base import Gaussian
from cflow.errors import CheckpointError, DomainError, ShapeError
from cflow.field import Exact, FunctionField, Hutchinson, KineticEnergy, MLPField
from cflow.manifold import Sphere
from cflow.ode import RK4, Dopri5, Euler
from cflow.transport import ODE, Affine, Chain, Dequantize, Inverse, Logit, Permutation, Reshape


def conditional() -> Flow:
    flow = recipes.realnvp(3, 2, transforms=2, hidden_features=(8,))
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return flow


def test_state_is_a_pytree_and_tracked_starts_at_zero() -> None:
    state = tracked(torch.ones(4, 2, 3), event_dim=2)
    assert state.ladj.tolist() == [0.0] * 4
    halved = pytree.tree_map_only(torch.Tensor, lambda leaf: leaf / 2, state)
    assert isinstance(halved, State)
    assert torch.equal(halved.x, state.x / 2)
    assert tracked(torch.ones(1, 2, dtype=torch.bfloat16)).ladj.dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "context", "out"),
    [
        ((5, 3), (5, 2), (5,)),
        ((5, 3), (2,), (5,)),
        ((3,), (5, 2), (5,)),
        ((4, 1, 3), (5, 2), (4, 5)),
        ((3,), (2,), ()),
        ((0, 3), (2,), (0,)),
    ],
    ids=str,
)
def test_batch_axes_of_points_and_context_broadcast(x: tuple, context: tuple, out: tuple) -> None:
    flow = conditional()
    points, given = torch.randn(x), torch.randn(context)
    log_prob = flow.log_prob(points, given)
    assert log_prob.shape == out
    full = flow.log_prob(points.expand(*out, 3), given.expand(*out, 2))
    assert torch.allclose(log_prob, full)


@pytest.mark.parametrize(
    ("shape", "context", "out"),
    [
        (7, (2,), (7, 3)),
        ((7,), (5, 2), (7, 5, 3)),
        ((), (5, 2), (5, 3)),
        ((2, 3), (5, 4, 2), (2, 3, 5, 4, 3)),
        (0, (2,), (0, 3)),
    ],
    ids=str,
)
def test_samples_have_sample_batch_and_event_axes(shape, context: tuple, out: tuple) -> None:
    flow, given = conditional(), torch.randn(context)
    assert flow.sample(shape, given).shape == out
    x, log_prob = flow.sample_and_log_prob(shape, given)
    assert x.shape == out
    assert torch.allclose(log_prob, flow.log_prob(x, given), atol=1e-10)


def test_samples_follow_the_generator_and_have_gradients_when_asked() -> None:
    flow, given = conditional(), torch.randn(2)
    draw = lambda seed: flow.sample(4, given, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert not draw(0).requires_grad
    assert flow.rsample(4, given).requires_grad


def test_push_and_pull_of_points_are_inverse() -> None:
    flow, given = conditional(), torch.randn(2)
    x0 = torch.randn(6, 3)
    assert torch.allclose(flow.pull(flow.push(x0, given), given), x0, atol=1e-12)


def test_the_distribution_view_behaves_as_torch_expects() -> None:
    flow = conditional()
    view = flow.at(torch.randn(5, 2))
    assert isinstance(view, torch.distributions.Distribution)
    assert (view.batch_shape, view.event_shape) == ((5,), (3,))
    assert view.sample((7,)).shape == (7, 5, 3)
    assert view.rsample().requires_grad
    assert view.log_prob(torch.randn(7, 5, 3)).shape == (7, 5)
    wide = view.expand((4, 5))
    assert wide.sample((2,)).shape == (2, 4, 5, 3)
    bare = recipes.realnvp(3, transforms=1).at()
    assert bare.expand((2,)).sample((7,)).shape == (7, 2, 3)


def test_kinds_of_likelihood_are_named_and_the_weakest_link_decides() -> None:
    exact, estimate = ODE(MLPField(2), RK4(2)), ODE(MLPField(2), RK4(2), divergence=Hutchinson())
    assert Flow(Gaussian(2), Chain(Affine(2.0), exact)).likelihood == "exact"
    assert Flow(Gaussian(2), Chain(exact, estimate)).likelihood == "estimate"
    assert Flow(Gaussian(2), Chain(estimate, Dequantize(4))).likelihood == "bound"


def test_an_estimate_is_unbiased_and_its_error_is_honest() -> None:
    """z-scores of 400 points are standard normal: |mean| < 6 / 20 fails by chance below 1e-8."""
    field = MLPField(3, hidden_features=(16,))
    torch.nn.init.normal_(field.net.last.weight, std=0.5)
    exact = Flow(Gaussian(3), ODE(field, RK4(8)))
    noisy = Flow(Gaussian(3), ODE(field, RK4(8), divergence=Hutchinson()))
    x = torch.randn(400, 3)
    with torch.no_grad():
        value, error = noisy.log_prob_with_error(x, repeats=64)
        z = (value - exact.log_prob(x)) / error
    assert abs(z.mean().item()) < 0.3
    assert 0.8 < z.std().item() < 1.25
    same, zero = exact.log_prob_with_error(x[:5])
    assert torch.equal(zero, torch.zeros(5))
    assert torch.allclose(same, exact.log_prob(x[:5]))


def test_an_estimate_broadcasts_points_against_contexts() -> None:
    flow = recipes.cnf(3, 2, hidden_features=(8,), solver=RK4(2), divergence=Hutchinson())
    x, context = torch.randn(3), torch.randn(5, 2)
    value, error = flow.log_prob_with_error(x, context, repeats=200)
    exact = Flow(flow.base, ODE(flow.transport.field, RK4(2)), context_shape=(2,))
    assert value.shape == error.shape == (5,)
    assert torch.allclose(value, exact.log_prob(x, context), atol=7 * error.max().item())


def test_gaussian_probes_estimate_the_same_divergence() -> None:
    field = FunctionField(lambda t, x, context: torch.sin(x) + 0.5 * x.flip(-1))
    x, t = torch.randn(3, 4), torch.zeros(3)
    exact = Exact()(field, t, x, None, None)[1]
    for law in ("rademacher", "gaussian"):
        hutchinson = Hutchinson(probes=4000, noise=law)
        noise = hutchinson.draw(x, 1, torch.Generator().manual_seed(0))
        estimate = hutchinson(field, t, x, None, noise)[1]
        assert torch.allclose(estimate, exact, atol=6 * 3 / 4000**0.5)


def test_kinetic_energy_reaches_the_loss_through_the_state() -> None:
    wind = FunctionField(lambda t, x, context: torch.full_like(x, 3.0))
    plain = Flow(Gaussian(2), ODE(wind, Euler(4)))
    charged = Flow(Gaussian(2), ODE(wind, Euler(4), cost=KineticEnergy(0.1)))
    x = torch.randn(5, 2)
    assert torch.allclose(nll(charged, x) - nll(plain, x), torch.full((5,), 0.1 * 0.5 * 18))
    assert torch.allclose(charged.log_prob(x), plain.log_prob(x))


def test_dequantisation_bounds_the_probability_of_integers() -> None:
    """Below the truth as a mean of logs, and the truth itself as the log of a mean."""
    flow = Flow(Gaussian(3), Chain(Inverse(Logit(0.0)), Dequantize(8)))
    x = torch.randint(0, 8, (200, 3))
    bound, error = flow.log_prob_with_error(x, repeats=50)
    edges = torch.logit(torch.arange(9) / 8)
    cell = torch.special.ndtr(edges[1:]) - torch.special.ndtr(edges[:-1])
    truth = cell.log()[x].sum(-1)
    assert bool((bound <= truth + 6 * error).all())
    many = flow.log_prob(x[:20].expand(20_000, 20, 3))
    assert torch.allclose(many.logsumexp(0) - math.log(20_000), truth[:20], atol=0.06)
    samples = flow.sample(100)
    assert bool((samples == samples.floor()).all())
    assert samples.min() >= 0
    assert samples.max() <= 7


def test_integers_come_in_whatever_precision_the_flow_has() -> None:
    for dtype in (torch.float32, torch.float64):
        flow = recipes.images(recipes.realnvp(4, transforms=2), (2, 2), levels=17).to(dtype)
        assert flow.log_prob(torch.randint(0, 17, (3, 2, 2))).dtype == dtype


def test_trajectory_starts_where_it_should_and_ends_as_push_does() -> None:
    ode = ODE(MLPField(2), RK4(8))
    x = torch.randn(3, 4, 2)
    ways = ode.trajectory(x, [0.0, 0.25, 1.0])
    assert ways.shape == (3, 3, 4, 2)
    assert torch.equal(ways[0], x)
    assert torch.allclose(ways[-1], ode.push(State(x)).x, atol=1e-12)
    back = ode.trajectory(ways[-1], torch.tensor([1.0, 0.5, 0.0]))
    assert torch.allclose(back[-1], x, atol=1e-5)


def test_with_solver_shares_weights_and_changes_steps_only() -> None:
    flow = recipes.images(recipes.cnf(4), (2, 2), levels=5)
    few = flow.with_solver(Euler(3))
    assert few.transport[0].solver == Euler(3)
    assert flow.transport[0].solver == Dopri5()
    assert few.transport[0].field is flow.transport[0].field
    assert set(few.state_dict()) == set(flow.state_dict())


def saved() -> list[Flow]:
    return [
        recipes.realnvp(4, 2, transforms=3, hidden_features=(8, 8), bound=2.0),
        recipes.cnf(2, hidden_features=(8,), solver=RK4(3), divergence=Hutchinson(2)),
        recipes.cnf(2, 3, solver=Dopri5(rtol=1e-4), cost=KineticEnergy(0.5)),
        recipes.images(recipes.cnf(4, hidden_features=(8,), solver=Euler(2)), (2, 2), levels=9),
    ]


@pytest.mark.parametrize("flow", saved(), ids=lambda flow: flow.recipe.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_saved_flow_comes_back_whole(flow: Flow, dtype: torch.dtype, tmp_path) -> None:
    flow = flow.to(dtype)
    path = tmp_path / "deep" / "flow.safetensors"
    flow.save(path)
    torch.manual_seed(99)
    again = cflow.load(path)
    assert again.recipe.describe() == flow.recipe.describe()
    context = None if flow.context_shape is None else torch.randn(flow.context_shape, dtype=dtype)
    draw = lambda f: f.sample(5, context, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(again), draw(flow))
    assert draw(again).dtype == dtype
    assert all(p.requires_grad for p in again.parameters())
    assert not again.training  # dropout would make a sampler of its own


def test_a_flow_of_ones_own_is_saved_as_weights(tmp_path) -> None:
    build = lambda: Flow(Gaussian(2), Chain(ODE(MLPField(2), Euler(2)), Affine(3.0)))
    flow, other = build(), build()
    flow.save(tmp_path / "own.safetensors")
    with pytest.raises(CheckpointError, match="no recipe built this flow"):
        cflow.load(tmp_path / "own.safetensors")
    assert cflow.load(tmp_path / "own.safetensors", into=other) is other
    x0 = torch.randn(3, 2)
    assert torch.equal(other.push(x0), flow.push(x0))


def test_files_that_cannot_be_loaded_are_named(tmp_path) -> None:
    flow = recipes.realnvp(4, transforms=2)
    path = tmp_path / "flow.safetensors"
    flow.save(path)
    with pytest.raises(CheckpointError, match=r"another model: .*; build the model"):
        cflow.load(path, into=recipes.realnvp(5, transforms=2))
    with pytest.raises(CheckpointError, match="no such file"):
        cflow.load(tmp_path / "none.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        cflow.load(path)
    with pytest.raises(CheckpointError, match="cannot write"):
        flow.save(path / "below a file" / "flow.safetensors")


def test_a_file_names_recipes_and_options_but_cannot_call_anything_else(tmp_path) -> None:
    from cflow import archive

    path = tmp_path / "evil.safetensors"
    evil = {"recipe": {"name": "system", "arguments": {"command": "touch owned"}}}
    archive.write(path, {}, evil)
    with pytest.raises(CheckpointError, match="unknown recipe 'system'"):
        cflow.load(path)
    option = {"option": "Popen", "fields": {"args": "touch owned"}}
    archive.write(path, {}, {"recipe": {"name": "cnf", "arguments": {"features": option}}})
    with pytest.raises(CheckpointError, match="unknown option 'Popen'"):
        cflow.load(path)


def test_an_argument_that_is_no_data_is_refused_at_saving(tmp_path) -> None:
    solver = Dopri5(norm=lambda ratios: ratios[0].abs().amax(-1))
    flow = recipes.cnf(2, solver=solver)
    with pytest.raises(DomainError, match="cannot be saved as data"):
        flow.save(tmp_path / "flow.safetensors")


def test_far_points_stay_finite() -> None:
    flow = recipes.realnvp(4, hidden_features=(16,)).float()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    far = torch.full((2, 4), 1e4, dtype=torch.float32)
    assert bool(torch.isfinite(flow.log_prob(far)).all())
    assert bool(torch.isfinite(flow.push(far)).all())


def test_wrong_input_is_refused_in_words() -> None:
    flow, plain = conditional(), recipes.realnvp(3, transforms=1)
    x = torch.randn(5, 3)
    with pytest.raises(ShapeError, match=r"x must end in shape \(3,\), got \(5, 4\)"):
        plain.log_prob(torch.randn(5, 4))
    with pytest.raises(ShapeError, match=r"context must end in shape \(2,\), got \(5, 3\)"):
        flow.log_prob(x, x)
    with pytest.raises(ShapeError, match=r"\(5,\) and of the context \(4,\) do not broadcast"):
        flow.log_prob(x, torch.randn(4, 2))
    with pytest.raises(DomainError, match=r"needs a context ending in shape \(2,\)"):
        flow.sample(3)
    with pytest.raises(DomainError, match="unconditional, got a context"):
        plain.log_prob(x, torch.randn(5, 2))
    with pytest.raises(DomainError, match=r"must be floating.*Dequantize"):
        plain.log_prob(torch.ones(5, 3, dtype=torch.long))
    with pytest.raises(DomainError, match="no determinant"):
        Dequantize(4).push(tracked(torch.rand(2, 3)))
    with pytest.raises(DomainError, match=r"times must lie in \[0, 1\].*got 1\.5"):
        ODE(MLPField(3)).trajectory(x, [0.0, 1.5])
    with pytest.raises(DomainError, match="two times or more"):
        ODE(MLPField(3)).trajectory(x, [0.5])
    with pytest.raises(DomainError, match="without turning back"):
        ODE(MLPField(3)).trajectory(x, [0.0, 0.9, 0.5])
    with pytest.raises(ShapeError, match="batch axes"):
        ODE(MLPField(3, 2)).push(State(x), torch.randn(4, 2))
    with pytest.raises(ShapeError, match="keep the event shape"):
        Flow(Gaussian(4), Inverse(Reshape((4,), (2, 2))))
    with pytest.raises(DomainError, match="every index must occur once"):
        Permutation([0, 0, 1])


@pytest.mark.unchecked
def test_wrong_types_are_refused_in_words() -> None:
    with pytest.raises(DomainError, match="part 0 must be a Transport, got Linear"):
        Chain(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(DomainError, match=r"steps must be a whole number.*got 2\.5"):
        Euler(2.5)  # type: ignore[arg-type]


def test_a_manifold_without_a_divergence_samples_but_has_no_likelihood() -> None:
    class Foreign:
        """A manifold of another library: geoopt's method names, nothing about volumes."""

        ndim = 1

        def projx(self, x: Tensor) -> Tensor:
            return Sphere().projx(x)

        def proju(self, x: Tensor, u: Tensor) -> Tensor:
            return Sphere().proju(x, u)

    ode = ODE(MLPField(3), RK4(4), manifold=Foreign())
    x = Sphere().projx(torch.randn(5, 3))
    assert torch.allclose(ode.push(State(x)).x.norm(dim=-1), torch.ones(5))
    with pytest.raises(DomainError, match="Foreign does not say its volume and divergence"):
        ode.push(tracked(x))


def test_a_single_label_is_a_context() -> None:
    flow = recipes.tarflow((4, 4), 3, patch=2, width=8, blocks=1, layers=1, heads=2).eval()
    label = torch.tensor(2)
    x = flow.sample((), label)
    assert x.shape == (4, 4)
    assert flow.log_prob(x, label).shape == ()
    labels = torch.tensor([0, 1, 2])
    points = flow.sample((), labels)
    single = torch.func.vmap(lambda a, c: flow.log_prob(a, c))(points, labels)
    assert torch.allclose(single, flow.log_prob(points, labels), rtol=0, atol=1e-10)
