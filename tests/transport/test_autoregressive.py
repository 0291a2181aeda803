"""Autoregressive layers: every way to invert them agrees, and so do the gradients through it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cflow.errors import DomainError, ShapeError, SolverError
from cflow.nets import MLP, MaskedMLP, adjacency_of_order, adjacency_of_passes
from cflow.state import State, tracked
from cflow.transport import (
    AffineMap,
    AutoregressiveLayer,
    GaussSeidel,
    Incremental,
    Inverse,
    Inversion,
    Jacobi,
    Passes,
    RationalQuadraticMap,
    UnivariateMap,
)
from cflow.transport.implicit import substitute
from cflow.transport.incremental import solve_transposed
from cflow.transport.inversion import Triangular, unrolled


def graph(features: int, share: float) -> Tensor:
    links = (torch.rand(features, features) < share).tril(-1)
    shuffle = torch.randperm(features)
    return links[shuffle][:, shuffle]


def layer(
    links: Tensor,
    *,
    context: int = 0,
    hidden: tuple[int, ...] = (24, 24),
    univariate: UnivariateMap | None = None,
    inversion: Inversion | None = None,
    residual: bool = False,
    activation: Callable[[Tensor], Tensor] = nn.functional.silu,
    dropout: float = 0.0,
) -> AutoregressiveLayer:
    univariate = AffineMap() if univariate is None else univariate
    net = MaskedMLP(
        links,
        univariate.parameters,
        context=context,
        hidden_features=hidden,
        residual=residual,
        activation=activation,
        dropout=dropout,
    )
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return AutoregressiveLayer(net, univariate, inversion=inversion)


def ladj(state: State) -> Tensor:
    assert state.ladj is not None
    return state.ladj


def system(layer: AutoregressiveLayer) -> Triangular:
    net = layer.conditioner
    return Triangular(
        layer._steer, layer.univariate, layer.depth, net if isinstance(net, MaskedMLP) else None
    )


GRAPHS = {
    "order": lambda: adjacency_of_order(torch.randperm(21)),
    "passes": lambda: adjacency_of_passes(7, 3),
    "sparse": lambda: graph(20, 0.15),
    "dense": lambda: graph(20, 0.8),
    "one": lambda: adjacency_of_order([0]),
    "no links": lambda: torch.zeros(4, 4, dtype=torch.bool),
}
MAPS = {"affine": AffineMap(), "spline": RationalQuadraticMap(4)}
every_graph = pytest.mark.parametrize("name", GRAPHS)
every_map = pytest.mark.parametrize("univariate", MAPS.values(), ids=MAPS)


@every_graph
@every_map
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("hidden", [(), (24,), (32, 32, 24)], ids=str)
def test_units_computed_once_give_what_full_passes_give(
    name: str, univariate: UnivariateMap, context: int, hidden: tuple[int, ...]
) -> None:
    for residual, block in ((False, 1), (True, 4), (True, None)):
        flow = layer(
            GRAPHS[name](),
            context=context,
            hidden=hidden,
            univariate=univariate,
            inversion=Incremental(block),
            residual=residual,
        )
        y = torch.randn(5, len(flow.depth))
        given = torch.randn(5, context) if context else None
        x, slopes = unrolled(system(flow), y, given)
        with torch.no_grad():
            found = flow.pull(tracked(y), given)
        assert torch.allclose(found.x, x, rtol=1e-12, atol=1e-12)
        assert torch.allclose(ladj(found), slopes.sum(-1), rtol=1e-12, atol=1e-12)
        assert torch.allclose(flow.push(State(x), given).x, y, rtol=1e-11, atol=1e-11)


@every_graph
@every_map
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("residual", [False, True])
def test_implicit_gradients_are_those_of_the_unrolled_inversion(
    name: str, univariate: UnivariateMap, context: int, residual: bool
) -> None:
    flow = layer(GRAPHS[name](), context=context, univariate=univariate, residual=residual)
    y = torch.randn(5, len(flow.depth), requires_grad=True)
    given = torch.randn(5, context, requires_grad=True) if context else None
    found = flow.pull(tracked(y), given)
    x, slopes = unrolled(system(flow), y, given)
    weight = torch.randn_like(x)
    sources = [y, *([] if given is None else [given]), *flow.parameters()]
    got = gradients((found.x * weight).sum() + ladj(found).square().sum(), sources)
    wanted = gradients((x * weight).sum() + slopes.sum(-1).square().sum(), sources)
    for ours, theirs in zip(got, wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)


def gradients(value: Tensor, sources: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(value, sources, allow_unused=True)
    return [torch.zeros_like(s) if g is None else g for g, s in zip(found, sources, strict=True)]


@pytest.mark.parametrize("activation", [torch.tanh, nn.functional.relu], ids=["tanh", "relu"])
@pytest.mark.parametrize("levels", [3, 16, 17, 40])
def test_both_substitutions_solve_with_the_transposed_jacobian(
    levels: int, activation: Callable[[Tensor], Tensor]
) -> None:
    flow = layer(adjacency_of_order(torch.randperm(levels)), hidden=(50, 60), activation=activation)
    x, right = torch.randn(1, levels), torch.randn(1, levels)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow.push(State(x[None])).x[0], x[0])
    wanted = torch.linalg.solve(jacobian.T, right[0])
    for solve in (substitute, solve_transposed):
        found = solve(system(flow), x, None, right)[0]
        assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-10)


def test_gradients_hold_against_finite_differences() -> None:
    flow = layer(adjacency_of_order([2, 0, 3, 1]), context=1, univariate=MAPS["spline"])

    def both(y: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        state = flow.pull(tracked(y), given)
        return state.x, ladj(state)

    y, given = torch.randn(3, 4).requires_grad_(), torch.randn(3, 1).requires_grad_()
    assert torch.autograd.gradcheck(both, (y, given))


@pytest.mark.parametrize("how", [Jacobi(1e-14), GaussSeidel(4, 1e-14), Passes()], ids=repr)
@every_graph
def test_fixed_points_are_exact_by_depth(name: str, how: Inversion) -> None:
    flow = layer(GRAPHS[name](), context=2, inversion=how)
    y, given = 3 * torch.randn(6, len(flow.depth)), torch.randn(6, 2)
    x, slopes = unrolled(system(flow), y, given)
    with torch.no_grad():
        found = flow.pull(tracked(y), given)
    assert torch.allclose(found.x, x, rtol=0, atol=1e-11)
    assert torch.allclose(ladj(found), slopes.sum(-1), rtol=0, atol=1e-11)


@pytest.mark.parametrize("how", [Jacobi, lambda **o: GaussSeidel(12, **o)])
def test_a_sample_that_has_not_settled_is_an_error_that_names_it(how) -> None:
    links = adjacency_of_order(range(12))
    flow = layer(links, inversion=how(tolerance=1e-10, max_sweeps=3))
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.6)
    y = torch.randn(4, 12)
    with pytest.raises(SolverError, match=r"4 of 4 samples did not settle.*sample 0 first"):
        flow.pull(State(y))
    loose = AutoregressiveLayer(flow.conditioner, inversion=how(tolerance=1e-10))
    exact = AutoregressiveLayer(flow.conditioner)
    assert torch.allclose(loose.pull(State(y)).x, exact.pull(State(y)).x, rtol=0, atol=1e-9)


def test_settled_samples_keep_to_themselves_and_to_the_tolerance() -> None:
    flow = layer(adjacency_of_order(range(12)), inversion=Jacobi(1e-5))
    y = torch.cat([0.01 * torch.randn(3, 12), 5 * torch.randn(3, 12)])
    together = flow.pull(State(y)).x
    for k in range(6):
        alone = flow.pull(State(y[k : k + 1])).x[0]
        assert torch.allclose(alone, together[k], rtol=0, atol=1e-12)
    exact = AutoregressiveLayer(flow.conditioner).pull(State(y)).x
    assert torch.allclose(together, exact, rtol=0, atol=1e-4)
    assert not torch.allclose(together, exact, rtol=0, atol=1e-12)  # it did stop early


@pytest.mark.parametrize("how", [Incremental(2), Jacobi(), GaussSeidel(), Passes()], ids=repr)
@pytest.mark.parametrize("batch", [(0,), (2, 0), (2, 3), ()], ids=str)
def test_any_batch_goes_through_the_pull_with_gradients(
    batch: tuple[int, ...], how: Inversion
) -> None:
    flow = layer(adjacency_of_order(range(5)), context=2, inversion=how)
    y, given = torch.randn(*batch, 5, requires_grad=True), torch.randn(*batch, 2)
    state = flow.pull(State(y, ladj=torch.zeros(batch)), given)
    (state.x.sum() + ladj(state).sum()).backward()
    assert y.grad is not None
    assert state.x.shape == y.grad.shape == (*batch, 5)
    assert ladj(state).shape == batch


def test_without_parameters_that_ask_there_is_no_graph() -> None:
    flow = layer(adjacency_of_order(range(5))).requires_grad_(False)
    assert not flow.pull(State(torch.randn(3, 5))).x.requires_grad
    points = torch.randn(3, 5, requires_grad=True)
    assert flow.pull(State(points)).x.requires_grad


def test_dropout_does_not_disturb_a_pull_nor_its_gradient() -> None:
    flow = layer(adjacency_of_order(range(6)), dropout=0.5).train()
    y = torch.randn(4, 6)
    x = flow.pull(State(y)).x
    assert torch.allclose(flow.eval().push(State(x)).x, y, rtol=0, atol=1e-12)


def test_a_map_that_differs_between_features_goes_through_full_passes() -> None:
    spline = RationalQuadraticMap(3, bound=(1.0, 2.0, 3.0, 4.0))
    flow = layer(adjacency_of_order([2, 0, 3, 1]), univariate=spline)
    x = torch.randn(5, 4)
    assert torch.allclose(flow.pull(flow.push(State(x))).x, x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_conditioner_of_low_precision_inverts_points_of_full_precision(
    dtype: torch.dtype,
) -> None:
    flow = Inverse(layer(adjacency_of_order(range(8))).to(dtype))
    y = torch.randn(20, 8)
    x = flow.push(State(y)).x
    assert x.dtype == torch.float64
    # Rounding inside the network is not the same in both directions; more than that is an error.
    assert torch.allclose(flow.pull(State(x)).x, y, atol=0.1 if dtype is torch.bfloat16 else 1e-4)


@pytest.mark.unchecked
def test_written_out_it_gives_the_same_numbers_under_func() -> None:
    flow = layer(adjacency_of_order([1, 0, 2]), inversion=Jacobi(1e-3))
    y = torch.randn(4, 3)
    pull = lambda y: flow.pull(State(y)).x
    exact = unrolled(system(flow), y, None)[0]
    assert torch.allclose(torch.func.vmap(pull)(y), exact, rtol=0, atol=1e-12)
    jacobian = torch.func.vmap(torch.func.jacrev(pull))(y)
    forward = torch.func.vmap(torch.func.jacfwd(pull))(y)
    assert torch.allclose(jacobian, forward, rtol=0, atol=1e-12)
    slopes = torch.linalg.slogdet(jacobian).logabsdet
    exactly = ladj(AutoregressiveLayer(flow.conditioner).pull(tracked(y)))
    assert torch.allclose(slopes, exactly, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AutoregressiveLayer(MLP(3, 6)), "needs an adjacency"),
        (lambda: AutoregressiveLayer(MaskedMLP(3, 3)), "the MaskedMLP gives 3"),
        (
            lambda: AutoregressiveLayer(MaskedMLP(3, 2), adjacency=adjacency_of_order([0, 1, 2])),
            "its own adjacency",
        ),
        (
            lambda: AutoregressiveLayer(MaskedMLP(torch.ones(2, 2) > 0, 2)),
            "without circles",
        ),
        (
            lambda: AutoregressiveLayer(MaskedMLP(3, 2), inversion=Passes(2)),
            "3 levels and needs as many passes, at most 2",
        ),
        (lambda: Jacobi(0.0), "tolerance must be positive"),
        (lambda: GaussSeidel(0), "block must be positive"),
        (lambda: Jacobi(max_sweeps=0), "max_sweeps must be positive"),
    ],
)
def test_bad_arguments_are_refused_in_words(build, message: str) -> None:
    with pytest.raises(DomainError, match=message):
        build()


def test_points_of_another_length_are_refused_in_words() -> None:
    flow = AutoregressiveLayer(MaskedMLP(3, 2))
    for move in (flow.push, flow.pull):
        with pytest.raises(ShapeError, match=r"must end in shape \(3,\), got \(5, 4\)"):
            move(State(torch.zeros(5, 4)))
