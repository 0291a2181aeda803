"""The kit in use: torch's transformations, low precision, labels, tolerances of solvers."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cflow.base import Gaussian
from cflow.field import MLPField
from cflow.flow import Flow
from cflow.nets import MLP, OneHot
from cflow.ode import Dopri5
from cflow.testing import Demands, Finding, Report, check_flow, check_transport
from cflow.testing.bench import Bench
from cflow.testing.maps import round_trip
from cflow.transport import ODE, Chain, Conditioned, CouplingLayer, Layer, Permutation

Maps = tuple[Tensor, Tensor | None]


class Net(nn.Module):
    """A network that takes points of any dtype, as those of cflow do."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(x.to(self.line.weight.dtype))


class Coupling(Layer):
    """An affine coupling of two numbers, with faults to choose from."""

    def __init__(self, fault: str = "") -> None:
        super().__init__(event_dim=1)
        self.fault = fault
        self.net = Net()

    def _theta(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        theta = self.net(kept)
        if self.fault != "low":
            theta = theta.to(torch.promote_types(kept.dtype, torch.float32))
        if self.fault == "branch" and bool((kept > 0).all()):
            theta = theta.clone()
        return theta[..., :1], theta[..., 1:].tanh()

    def _push(self, x: Tensor, context: Tensor | None, *, tracked: bool) -> Maps:
        shift, log_scale = self._theta(x[..., :1])
        moved = x[..., 1:] * log_scale.exp() + shift
        y = torch.cat([x[..., :1], moved.to(x.dtype)], -1)
        return (y.to(shift.dtype) if self.fault == "low" else y), _sum(log_scale)

    def _pull(self, y: Tensor, context: Tensor | None, *, tracked: bool) -> Maps:
        shift, log_scale = self._theta(y[..., :1])
        moved = (y[..., 1:] - shift) * (-log_scale).exp()
        return torch.cat([y[..., :1], moved.to(y.dtype)], -1), -_sum(log_scale)


def _sum(log_scale: Tensor) -> Tensor:
    return log_scale.to(torch.promote_types(log_scale.dtype, torch.float32)).sum(-1)


def finding(report: Report, name: str) -> Finding:
    (found,) = [f for f in report.findings if f.name == name]
    return found


def test_a_branch_on_data_is_caught() -> None:
    sound = check_transport(Coupling(), shape=(2,))
    sound.raise_if_failed()
    assert finding(sound, "torch.func").outcome == "passed"
    assert finding(sound, "torch.compile").outcome == "skipped"
    report = check_transport(Coupling("branch"), shape=(2,))
    assert {f.name for f in report.failures} == {"torch.func"}


@pytest.mark.unchecked
def test_tracing_is_held_where_it_is_asked_for() -> None:
    demands = Demands(trace=True, func=False)
    sound = check_transport(Coupling(), shape=(2,), demands=demands)
    sound.raise_if_failed()
    assert finding(sound, "torch.compile").outcome == "passed"
    assert finding(sound, "torch.export").outcome == "passed"
    report = check_transport(Coupling("branch"), shape=(2,), demands=demands)
    assert {f.name for f in report.failures} == {"torch.compile", "torch.export"}


def test_arithmetic_in_the_networks_precision_is_caught() -> None:
    report = check_transport(Coupling("low"), shape=(2,))
    assert {f.name for f in report.failures} == {"bfloat16 networks"}
    assert finding(check_transport(Coupling(), shape=(2,)), "bfloat16 networks").outcome == "passed"


def test_a_network_of_one_dtype_is_no_failure() -> None:
    layer = Coupling()
    layer.net = nn.Linear(1, 2)  # type: ignore[assignment]
    report = check_transport(layer, shape=(2,))
    report.raise_if_failed()
    assert "own dtype" in finding(report, "bfloat16 networks").message


class Deaf(Layer):
    """Takes labels and does nothing with them."""

    def __init__(self) -> None:
        super().__init__(event_dim=0)
        self.shift = nn.Parameter(torch.zeros(()))

    def _push(self, x: Tensor, context: Tensor | None, *, tracked: bool) -> Maps:
        return x + self.shift, (x * 0).to(torch.promote_types(x.dtype, torch.float32))

    def _pull(self, y: Tensor, context: Tensor | None, *, tracked: bool) -> Maps:
        return y - self.shift, (y * 0).to(torch.promote_types(y.dtype, torch.float32))


def test_integer_labels_are_a_context() -> None:
    net = MLP(1, 2, context=3, hidden_features=(8,))
    sound = Conditioned(Chain(CouplingLayer([True, False], net), Permutation([1, 0])), OneHot(3))
    flow = Flow(Gaussian(2), sound, context_shape=())
    report = check_flow(flow, classes=3, cells=80)
    report.raise_if_failed()
    assert finding(report, "context matters").outcome == "passed"
    assert finding(report, "torch.func").outcome == "passed"
    deaf = check_transport(Deaf(), shape=(2,), context=(), classes=3)
    assert {f.name for f in deaf.failures} == {"context matters"}


def test_adaptive_solvers_pass_at_their_own_tolerance() -> None:
    ode = ODE(MLPField(2, hidden_features=(8,)), Dopri5(rtol=1e-5, atol=1e-5))
    demands = Demands(
        round_trip=1e-3, jacobian=1e-3, func=False, far=None, precisions=(torch.float32,)
    )
    check_transport(ode, shape=(2,), demands=demands).raise_if_failed()
    tight = Bench(ode, (2,), None, 0, replace(demands, round_trip=1e-14))
    assert round_trip(tight, "base").outcome == "failed"
