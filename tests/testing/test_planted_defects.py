"""The kit catches defects that libraries of flows have shipped, and passes their sound twins."""

import math

import pytest
import torch
from torch import Tensor, nn

from cflow.base import Gaussian
from cflow.errors import DomainError
from cflow.flow import Flow
from cflow.nets import MLP
from cflow.testing import Demands, Finding, Report, check_flow, check_transport
from cflow.testing.report import Check, run_checks
from cflow.transport import ActNorm, Affine, CouplingLayer, Layer, MovingBatchNorm, Standardize
from cflow.transport.data_dependent import DataDependent

Maps = tuple[Tensor, Tensor | None]


class Scale(Layer):
    """y = x exp(s), s steered by the context, with faults to choose from."""

    def __init__(self, fault: str = "") -> None:
        super().__init__(event_dim=1)
        self.fault = fault
        self.log_scale = nn.Parameter(torch.zeros(2))
        self.steer = nn.Parameter(torch.full((2,), 0.5))

    def _s(self, context: Tensor | None) -> Tensor:
        if context is None or self.fault == "context":
            return self.log_scale + 0 * self.steer
        return self.log_scale + self.steer * context

    def _total(self, s: Tensor, x: Tensor) -> Tensor:
        total = s.expand(x.shape).sum(-1)
        if self.fault == "bin width":
            total = total + math.log(8.0)
        if self.fault == "only at initialisation":
            total = total * 0.5
        return -total if self.fault == "sign in both" else total

    def _push(self, x: Tensor, context: Tensor | None, *, tracked: bool) -> Maps:
        s = self._s(context)
        if self.fault == "in place":
            x.mul_(s.exp().detach())
            return x * 1.0, self._total(s, x)
        y = x * s.exp()
        if self.fault == "batch mates":
            y = y - y.mean(0) * 1e-3
        if self.fault == "far":
            y = y * (x.square().exp() / x.square().exp())
        if self.fault == "float32":
            y = y.float().to(x.dtype)
        return y, self._total(s, x)

    def _pull(self, y: Tensor, context: Tensor | None, *, tracked: bool) -> Maps:
        s = self._s(context)
        total = self._total(s, y)
        if self.fault == "detached":
            s = s.detach()
            total = total.detach()
        x = y * (-s).exp()
        if self.fault == "order":
            x = x.flip(-1)
        return x, total if self.fault == "sign in pull" else -total


class SelfSetting(Layer):
    """An ActNorm that sets itself in its first pull in training mode, with faults to choose from.

    The flag as a plain attribute is what nflows #4, a pull request of normflows and FrEIA's issue
    33 were about: a loaded model sets itself anew from the next batch.
    """

    def __init__(self, fault: str = "") -> None:
        super().__init__(event_dim=1)
        self.fault = fault
        self.log_scale = nn.Parameter(torch.zeros(2))
        self.shift: Tensor
        self.fitted: Tensor
        if fault == "statistics not saved":
            self.shift = torch.zeros(2, dtype=torch.float64)
        else:
            self.register_buffer("shift", torch.zeros(2))
        if fault == "flag is an attribute":
            self.fitted = torch.tensor(False)
        else:
            self.register_buffer("fitted", torch.tensor(False))

    def _push(self, x: Tensor, context: Tensor | None, *, tracked: bool) -> Maps:
        y = x * self.log_scale.exp() + self.shift.to(x.dtype)
        return y, _total(self.log_scale)

    def _pull(self, y: Tensor, context: Tensor | None, *, tracked: bool) -> Maps:
        if self.training and (not bool(self.fitted) or self.fault == "sets itself always"):
            self.shift = y.detach().mean(0)
            self.fitted = torch.tensor(True)
        x = (y - self.shift.to(y.dtype)) * (-self.log_scale).exp()
        return x, -_total(self.log_scale)


def _total(log_scale: Tensor) -> Tensor:
    return log_scale.to(torch.promote_types(log_scale.dtype, torch.float32)).sum()


class FlagLost(DataDependent):
    """A layer that `initialize` knows, with the flag taken out of the state_dict."""

    def __init__(self) -> None:
        super().__init__((2,))
        del self._buffers["fitted"]
        self.fitted = torch.tensor(False)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(2))

    def _set(self, mean: Tensor, scale: Tensor) -> None:
        self.mean.copy_(mean)

    def _push(self, x: Tensor, context: Tensor | None, *, tracked: bool) -> Maps:
        return x + self.mean, _total(self.mean * 0)

    def _normalize(self, y: Tensor, context: Tensor | None, *, tracked: bool) -> Maps:
        return y - self.mean, _total(self.mean * 0)


def failed(report: Report) -> set[str]:
    return {finding.name for finding in report.failures}


def check(layer: Layer) -> Report:
    return check_transport(layer, shape=(2,), context=(2,))


def test_the_sound_twin_passes() -> None:
    report = check(Scale())
    report.raise_if_failed()
    check_transport(ActNorm((2,)), shape=(2,)).raise_if_failed()
    check_transport(
        CouplingLayer([False, True], MLP(1, 2, context=2)), shape=(2,), context=(2,)
    ).raise_if_failed()


@pytest.mark.parametrize(
    ("fault", "caught"),
    [
        ("bin width", "ladj of push"),
        ("only at initialisation", "ladj of push"),
        ("sign in both", "ladj of push"),
        ("sign in pull", "ladj of pull"),
        ("sign in pull", "round trip from the base"),
        ("context", "context matters"),
        ("in place", "caller's tensors"),
        ("batch mates", "batch independence"),
        ("far", "far inputs"),
        ("float32", "round trip from the base"),
        ("detached", "gradients of pull"),
        ("order", "round trip from the base"),
    ],
)
def test_a_planted_fault_is_caught(fault: str, caught: str) -> None:
    assert caught in failed(check(Scale(fault)))


def test_what_cancels_in_a_round_trip_is_seen_by_the_jacobian_alone() -> None:
    for fault in ("sign in both", "bin width"):
        assert "round trip from the base" not in failed(check(Scale(fault)))
    halved = failed(check(Scale("only at initialisation")))
    assert "round trip from the base" not in halved


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (SelfSetting("flag is an attribute"), "the flag is not saved"),
        (SelfSetting("statistics not saved"), "lost in a state_dict"),
        (SelfSetting("sets itself always"), "second initialisation"),
        (FlagLost(), "the flag is not saved"),
    ],
)
def test_statistics_that_do_not_stay_are_caught(layer: Layer, said: str) -> None:
    report = check_transport(layer, shape=(2,))
    (finding,) = [f for f in report.findings if f.name == "initialised once"]
    assert finding.outcome == "failed"
    assert said in finding.message


def test_statistics_that_stay_pass() -> None:
    for layer in (SelfSetting(), ActNorm((2,)), Standardize((2,)), MovingBatchNorm((2,))):
        report = check_transport(layer, shape=(2,))
        (finding,) = [f for f in report.findings if f.name == "initialised once"]
        assert finding.outcome == "passed", str(report)
        report.raise_if_failed()
    moving = MovingBatchNorm((2,))
    moving.fit(3 + torch.randn(50, 2))  # it was set before, and goes on moving in training
    check_transport(moving, shape=(2,)).raise_if_failed()


class Squashed(Layer):
    """A map onto (-1, 1), whose inverse is taken to exist for all numbers: it does not cover."""

    def __init__(self) -> None:
        super().__init__(event_dim=0)

    def _push(self, x: Tensor, context: Tensor | None, *, tracked: bool) -> Maps:
        return x.asinh(), -0.5 * (1 + x.square()).log()

    def _pull(self, y: Tensor, context: Tensor | None, *, tracked: bool) -> Maps:
        y = y.clamp(-1.0, 1.0)
        return y.sinh(), y.cosh().log()


@pytest.mark.parametrize("features", [1, 2])
def test_mass_that_is_lost_is_caught(features: int) -> None:
    sound = Flow(Gaussian(features), Affine(scale=2.0))
    flow = Flow(Gaussian(features), Squashed())
    check_flow(sound).raise_if_failed()
    assert "mass" in failed(check_flow(flow, demands=Demands(far=None)))


def test_the_module_is_untouched_and_the_report_reads() -> None:
    layer = ActNorm((2,))
    report = check_transport(layer, shape=(2,))
    assert not layer.log_scale.any()
    assert layer.log_scale.grad is None
    assert "ladj of pull" in str(report)
    with pytest.raises(DomainError, match="checks failed"):
        check(Scale("bin width")).raise_if_failed()


def test_an_error_of_a_layer_is_a_finding() -> None:
    def broken() -> Finding:
        raise RuntimeError("no such axis")

    (finding,) = run_checks([Check("broken", "it works", broken)]).findings
    assert finding.outcome == "failed"
    assert "no such axis" in finding.message
