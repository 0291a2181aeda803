"""Links lost or forbidden are found by the kit and named; sound graphs pass."""

import pytest
import torch
from torch import Tensor, nn

from cflow.nets import MaskedMLP, adjacency_of_order
from cflow.nets.masked import MaskedLinear
from cflow.testing import Finding, Report, check_transport
from cflow.transport import AutoregressiveLayer, Chain, Inverse, Layer, Permutation

Maps = tuple[Tensor, Tensor | None]


class Degrees(nn.Module):
    """A masked network by degrees; strict inequalities between hidden layers lose links."""

    def __init__(self, features: int, *, strict: bool, leaky: bool = False) -> None:
        super().__init__()
        self.adjacency: Tensor
        self.register_buffer("adjacency", adjacency_of_order(range(features)))
        inputs = torch.arange(1, features + 1)
        hidden = torch.arange(8) % max(features - 1, 1) + 1
        outputs = inputs.repeat_interleave(2)
        self.first, self.second = MaskedLinear(features, 8), MaskedLinear(8, 8)
        self.last = MaskedLinear(8, 2 * features)
        self.first.set_mask(hidden[:, None] >= inputs)
        self.second.set_mask(hidden[:, None] > hidden if strict else hidden[:, None] >= hidden)
        self.last.set_mask(outputs[:, None] >= hidden if leaky else outputs[:, None] > hidden)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.first(x.to(self.last.weight.dtype)))
        return self.last(torch.tanh(self.second(h)))


class Ordered(Layer):
    """y_i = x_i + sum of tanh of the features before it in an order; the pull may forget that."""

    def __init__(self, order: list[int], *, ignored: bool = False) -> None:
        super().__init__(event_dim=1)
        self.weight = nn.Parameter(torch.ones(3, 3))
        self.mask: Tensor
        self.register_buffer("mask", adjacency_of_order(order))
        self.steps = range(3) if ignored else torch.tensor(order).argsort().tolist()

    def _push(self, x: Tensor, context: Tensor | None, *, tracked: bool) -> Maps:
        return x + x.tanh() @ (self.weight * self.mask).T, _none(x)

    def _pull(self, y: Tensor, context: Tensor | None, *, tracked: bool) -> Maps:
        found: dict[int, Tensor] = {}
        for i in self.steps:
            moved = [self.weight[i, j] * found[j].tanh() for j in found if self.mask[i, j]]
            found[i] = y[..., i] - (torch.stack(moved).sum(0) if moved else 0)
        return torch.stack([found[i] for i in range(3)], -1), _none(y)


def _none(x: Tensor) -> Tensor:
    return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)).sum(-1)


def finding(report: Report, name: str) -> Finding:
    (found,) = [f for f in report.findings if f.name == name]
    return found


def degrees(features: int, *, strict: bool, leaky: bool = False) -> AutoregressiveLayer:
    net = Degrees(features, strict=strict, leaky=leaky)
    return AutoregressiveLayer(net, adjacency=net.adjacency)


@pytest.mark.parametrize("features", [2, 3])
def test_strict_inequalities_that_cut_all_links_are_caught(features: int) -> None:
    """With two numbers what is left is a product of two densities."""
    report = check_transport(degrees(features, strict=True), shape=(features,))
    for name in ("links", "links of networks"):
        assert finding(report, name).outcome == "failed"
        assert "lost links" in finding(report, name).message
        assert "1 <- 0" in finding(report, name).message
    assert finding(report, "ladj of push").outcome == "passed", "nothing else shows it"
    assert finding(report, "round trip from the base").outcome == "passed"


@pytest.mark.parametrize("features", [2, 3])
def test_the_sound_twin_passes(features: int) -> None:
    report = check_transport(degrees(features, strict=False), shape=(features,))
    report.raise_if_failed()
    assert finding(report, "links").outcome == "passed"
    assert finding(report, "links of networks").outcome == "passed"


def test_a_feature_that_reads_itself_is_caught() -> None:
    report = check_transport(degrees(2, strict=False, leaky=True), shape=(2,))
    found = finding(report, "links of networks")
    assert "forbidden links 0 <- 0" in found.message
    assert finding(report, "ladj of push").outcome == "failed"


def test_masked_networks_pass_in_any_orientation() -> None:
    layer = AutoregressiveLayer(MaskedMLP(3, 2, order=[2, 0, 1], hidden_features=(6, 6)))
    for transport in (layer, Inverse(layer), Inverse(Inverse(layer))):
        report = check_transport(transport, shape=(3,))
        report.raise_if_failed()
        assert finding(report, "links").outcome == "passed"
        assert finding(report, "links of networks").outcome == "passed"


@pytest.mark.parametrize("order", [[2, 0, 1], [2, 1, 0]])
def test_an_inverse_that_ignores_the_order_is_caught(order: list[int]) -> None:
    adjacency = adjacency_of_order(order)
    check_transport(Ordered(order), shape=(3,), adjacency=adjacency).raise_if_failed()
    report = check_transport(Ordered(order, ignored=True), shape=(3,), adjacency=adjacency)
    assert finding(report, "round trip from the base").outcome == "failed"
    assert "pull: lost links" in finding(report, "links").message
    assert "push" not in finding(report, "links").message


def test_an_adjacency_of_the_callers_is_held_against_the_whole_map() -> None:
    chain = Chain(Ordered([0, 1, 2]), Permutation([2, 1, 0]))
    moved = torch.ones(3, 3).tril().flip(0).bool()
    check_transport(chain, shape=(3,), adjacency=moved).raise_if_failed()
    moved[0, 2] = False
    report = check_transport(chain, shape=(3,), adjacency=moved)
    assert finding(report, "links").message == "push: forbidden links 0 <- 2"
    wrong = check_transport(Ordered([0, 1, 2]), shape=(3,), adjacency=adjacency_of_order([2, 1, 0]))
    message = finding(wrong, "links").message
    assert "push: lost links 0 <- 1, 0 <- 2, 1 <- 2" in message
    assert "push: forbidden links 1 <- 0, 2 <- 0, 2 <- 1" in message
    small = check_transport(Ordered([0, 1, 2]), shape=(3,), adjacency=adjacency_of_order([0, 1]))
    assert "the adjacency is (2, 2)" in finding(small, "links").message
