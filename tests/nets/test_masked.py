"""Masked networks: outputs read what they may and nothing else, at every width that is accepted."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from cflow.errors import DomainError
from cflow.nets import MaskedMLP, adjacency_of_order, adjacency_of_passes
from cflow.nets.masked import depths


def graph(features: int, share: float, seed: int) -> Tensor:
    """Draw a graph without circles, its features in random order."""
    generator = torch.Generator().manual_seed(seed)
    links = (torch.rand(features, features, generator=generator) < share).tril(-1)
    shuffle = torch.randperm(features, generator=generator)
    return links[shuffle][:, shuffle]


GRAPHS = {
    "order": adjacency_of_order(range(5)),
    "permuted": adjacency_of_order([3, 0, 4, 1, 2]),
    "passes": adjacency_of_passes(5, 2),
    "two": adjacency_of_order(range(2)),
    "three": adjacency_of_order(range(3)),
    "sparse": graph(9, 0.2, 0),
    "dense": graph(9, 0.7, 1),
    "rectangular": torch.rand(4, 6, generator=torch.Generator().manual_seed(2)) < 0.5,
    "empty": torch.zeros(3, 3, dtype=torch.bool),
}


def links(net: MaskedMLP, context: Tensor | None) -> Tensor:
    """Find by autograd which parameters read which inputs, `(outputs, parameters, inputs)`."""
    x = torch.randn(net.adjacency.shape[1])
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, context), x)
    return (jacobian != 0).unflatten(0, (-1, net.parameters_each))


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("hidden", [(), (12,), (12, 12, 17), (20, 11)], ids=str)
def test_the_jacobian_is_not_zero_exactly_where_a_link_is(
    name: str, context: int, residual: bool, hidden: tuple[int, ...]
) -> None:
    net = MaskedMLP(GRAPHS[name], 2, context=context, hidden_features=hidden, residual=residual)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    given = torch.randn(context) if context else None
    found = links(net, given)
    assert torch.equal(found.all(1), GRAPHS[name])
    assert torch.equal(found.any(1), GRAPHS[name])


@pytest.mark.parametrize("features", [2, 3, 6])
def test_strict_degrees_between_hidden_layers_would_lose_links(features: int) -> None:
    """The rule of another library, whose flows in two or three dimensions lose every link."""
    degrees = [torch.arange(features), *[torch.arange(12) % (features - 1)] * 2]
    masks = [after[:, None] > before for before, after in itertools.pairwise(degrees)]
    masks.append(degrees[0][:, None] > degrees[-1])
    reach = masks[2].double() @ masks[1].double() @ masks[0].double() > 0
    wanted = adjacency_of_order(range(features))
    assert int(reach.sum()) < int(wanted.sum()) / 2
    assert features > 3 or not bool(reach.any())
    net = MaskedMLP(features, hidden_features=(12, 12))
    assert torch.equal(links(net, None).all(1), wanted)


@pytest.mark.parametrize("name", GRAPHS)
def test_no_unit_is_dead(name: str) -> None:
    if name == "empty":
        pytest.skip("nothing may be read")
    net = MaskedMLP(GRAPHS[name], 2, hidden_features=(12, 13))
    first, second, last = (layer.mask for layer in net.layers())
    assert bool(first.any(1).all())
    assert bool(second.any(1).all())
    assert bool(second.any(0).all())
    assert bool(last.any(0).all())


def test_the_context_reaches_every_output() -> None:
    net = MaskedMLP(3, 2, context=2, hidden_features=(6, 6))
    x = torch.randn(3)
    jacobian = torch.autograd.functional.jacobian(lambda c: net(x, c), torch.randn(2))
    assert bool((jacobian != 0).all())
    curved = torch.autograd.functional.hessian(lambda c: net(x, c)[0], torch.randn(2))
    assert bool((curved != 0).any())  # the first feature has units of its own, not a line only


def test_narrow_layers_are_refused_and_the_lost_links_named() -> None:
    with pytest.raises(DomainError, match=r"2 links would be lost.*3 <- 2, 5 <- 4.*got \(3, 8\)"):
        MaskedMLP(6, hidden_features=(3, 8))
    MaskedMLP(6, hidden_features=(5, 8))


def test_a_circle_is_no_graph_to_invert() -> None:
    circle = torch.tensor([[False, True], [True, False]])
    MaskedMLP(circle, hidden_features=(4,))  # a network may have one
    with pytest.raises(DomainError, match="without circles"):
        depths(circle)
    assert depths(graph(9, 0.3, 3)).min() == 0
    assert depths(adjacency_of_passes(7, 3, order=[6, 5, 4, 3, 2, 1, 0])).tolist() == [
        2, 2, 1, 1, 0, 0, 0,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MaskedMLP(3, order=[0, 0, 1]), "each of 0..D-1 once"),
        (lambda: MaskedMLP(3, order=[0, 1]), "must name 3 features, got 2"),
        (lambda: MaskedMLP(3, 0), "sizes must be positive"),
        (lambda: MaskedMLP(torch.ones(3, 3)), "matrix of flags"),
        (lambda: MaskedMLP(adjacency_of_order([0, 1]), order=[0, 1]), "order must be None"),
        (lambda: adjacency_of_passes(3, 4), "between 1 and 3"),
    ],
)
def test_bad_arguments_are_refused_in_words(build, message: str) -> None:
    with pytest.raises(DomainError, match=message):
        build()


def test_an_order_is_loaded_with_the_weights() -> None:
    first = MaskedMLP(5, 2, order=[3, 0, 4, 1, 2], hidden_features=(9, 9))
    other = MaskedMLP(5, 2, hidden_features=(9, 9))
    other.load_state_dict(first.state_dict())
    x = torch.randn(4, 5)
    assert torch.equal(first(x), other(x))
    assert other.depth == first.depth == (3, 0, 4, 1, 2)


def test_dropout_rests_where_the_network_has_to_stand_still() -> None:
    net = MaskedMLP(4, hidden_features=(64,), dropout=0.5).train()
    x = torch.randn(3, 4)
    assert not torch.equal(net(x), net(x))
    assert torch.equal(net.steady(x), net.eval()(x))


def test_a_network_of_low_precision_takes_any_points_and_zero_last_is_zero() -> None:
    net = MaskedMLP(4, 3, context=1, hidden_features=(8,), zero_last=True).to(torch.bfloat16)
    theta = net(torch.randn(0, 2, 4), torch.randn(0, 2, 1))
    assert theta.shape == (0, 2, 12)
    assert theta.dtype == torch.bfloat16
    assert not bool(net(torch.randn(5, 4), torch.randn(5, 1)).any())
