"""Leaps: the exact map of Gaussians, densities that integrate to one, folds that are refused."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import cflow
from cflow import Flow, State, recipes
from cflow.base import Gaussian
from cflow.errors import DomainError, ShapeError, SolverError
from cflow.field import FlowMap
from cflow.ode import Dopri5, Euler, Heun, TimeGrid, Tuned
from cflow.transport import ODE, Chain, Leap, instantaneous, with_solver


class GaussianMap(FlowMap):
    """The average velocity of the straight paths from N(0, 1) to N(mean, std^2), in closed form.

    x_t = t mean + s_t x_0 with s_t^2 = (1 - t)^2 + t^2 std^2: every quantile keeps its rank.
    """

    def __init__(self, mean: float = 2.0, std: float = 0.5) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, r: Tensor, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        r, t = r[..., None], t[..., None]
        spread = lambda s: ((1 - s).square() + (s * self.std).square()).sqrt()
        end = t * self.mean + spread(t) / spread(r) * (x - r * self.mean)
        rate = ((1 + self.std**2) * r - 1) / spread(r).square()  # spread'(r) / spread(r)
        still = t == r
        u = torch.where(still, 0.0, (end - x) / torch.where(still, 1.0, t - r))
        return self.weight * torch.where(still, self.mean + rate * (x - r * self.mean), u)


class Folding(FlowMap):
    """x + u = x^2: two starts for each positive end, none for a negative one."""

    def forward(self, r: Tensor, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return x.square() - x


def trained(leaps: int = 1, features: int = 2) -> Flow:
    flow = recipes.cnf(features, hidden_features=(16, 16), frequencies=2, average=True)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    return flow.with_solver(Euler(leaps))


@pytest.mark.parametrize("leaps", [1, 2, 5])
def test_where_the_map_is_right_any_number_of_leaps_is_exact(leaps: int) -> None:
    flow = Flow(Gaussian(1), Leap(GaussianMap(), Euler(leaps)))
    x = 2 + 0.5 * torch.randn(50, 1)
    expected = -0.5 * ((x[:, 0] - 2) / 0.5).square() - math.log(0.5 * math.sqrt(2 * math.pi))
    assert torch.allclose(flow.log_prob(x), expected, rtol=0, atol=1e-10)
    solved = Flow(flow.base, instantaneous(flow.transport)).with_solver(Dopri5(1e-9, 1e-9))
    assert torch.allclose(solved.log_prob(x), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("leaps", [1, 3])
def test_the_density_of_leaps_integrates_to_one(leaps: int) -> None:
    flow = trained(leaps)
    axis = torch.linspace(-9, 9, 181)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = flow.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(mass.item() - 1) < 1e-3


def test_gradients_of_the_inverse_are_those_of_finite_differences() -> None:
    flow = trained(2)
    x = torch.randn(3, 2)
    weight = flow.transport.flow_map.field.net.hidden[0].weight  # type: ignore[union-attr]
    flow.log_prob(x).sum().backward()
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            weight[0, 0] += sign * 1e-5
            values.append(flow.log_prob(x).sum())
            weight[0, 0] -= sign * 1e-5
    assert weight.grad is not None
    assert math.isclose(weight.grad[0, 0], (values[0] - values[1]) / 2e-5, rel_tol=1e-5)
    assert torch.autograd.gradcheck(lambda x: flow.pull(x), x.requires_grad_())


def test_a_fold_is_refused_and_named() -> None:
    flow = Flow(Gaussian(1), Leap(Folding()))
    with pytest.raises(SolverError, match=r"1 of 2 points have no start .* at 1 the map folds"):
        flow.log_prob(torch.tensor([[4.0], [-1.0]]))  # 4 is the square of -2, where it falls


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_leaps_follow_the_solver_and_count_themselves() -> None:
    flow = trained()
    x0 = torch.randn(4, 2)
    u = flow.transport.flow_map  # type: ignore[union-attr]
    zero, inner, one = (torch.full((4,), t) for t in (0.0, 0.3, 1.0))
    middle = x0 + 0.3 * u(zero, inner, x0)
    expected = middle + 0.7 * u(inner, one, middle)
    again = flow.with_solver(Euler(grid=TimeGrid((0.0, 0.3, 1.0))))
    assert torch.allclose(again.push(x0), expected, rtol=0, atol=1e-14)
    assert again.transport.push(State(x0)).nfe.tolist() == [2] * 4
    tuned = Tuned(weights=((0.3,), (0.3, 0.7)), grid=TimeGrid((0.0, 0.3, 1.0)))  # the same
    weighed = flow.with_solver(tuned)
    assert torch.allclose(weighed.push(x0), expected, rtol=0, atol=1e-14)
    ends = (f.sample_and_log_prob(4, generator=seeded()) for f in (again, weighed))
    (x, by_leaps), (y, as_one) = ends
    assert torch.allclose(x, y)
    assert torch.allclose(by_leaps, as_one)
    with pytest.raises(DomainError, match="for a push alone"):
        weighed.log_prob(x0)
    with pytest.raises(DomainError, match="takes Euler"):
        flow.with_solver(Heun(2))
    solved = with_solver(instantaneous(flow.transport), Heun(2))
    assert isinstance(solved, ODE)
    assert solved.solver == Heun(2)


def test_shapes_are_checked() -> None:
    with pytest.raises(ShapeError, match="event_dim=2"):
        Flow(Gaussian((2, 2)), Leap(Folding()))
    with pytest.raises(ShapeError, match=r"Leap\.push"):
        Leap(Folding()).push(State(torch.zeros(3, 1)), torch.zeros(2, 5))


@pytest.mark.parametrize(
    "make",
    [
        lambda: recipes.cnf(3, 2, hidden_features=(8,), average=True),
        lambda: recipes.unet((4, 4), 3, width=8, blocks=1, levels=5, average=True),
        lambda: recipes.dit((1, 4, 4), width=8, layers=1, heads=2, average=True),
    ],
)
def test_recipes_leap_and_come_back_from_their_files(make: object, tmp_path: Path) -> None:
    flow = make().eval()  # type: ignore[operator]
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    flow.save(tmp_path / "flow.safetensors")
    again = cflow.load(tmp_path / "flow.safetensors")
    shape = flow.context_shape
    context = None if shape is None else torch.ones(shape) if shape else torch.tensor(1)
    draws = [
        f.sample(4, context, generator=torch.Generator().manual_seed(0)) for f in (flow, again)
    ]
    assert torch.equal(*draws)
    first = flow.transport[0] if isinstance(flow.transport, Chain) else flow.transport
    assert isinstance(first, Leap)


def test_what_only_an_ode_has_is_refused() -> None:
    from cflow.field import Exact

    with pytest.raises(DomainError, match="belong to an ODE"):
        recipes.cnf(2, average=True, divergence=Exact())


@pytest.mark.unchecked
def test_leaps_compile_and_export_as_one_graph() -> None:
    flow = trained(2)
    x = torch.randn(5, 2)
    compiled = torch.compile(flow.push, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(compiled(x), flow.push(x), rtol=0, atol=1e-12)
