"""Samples that miss the density, biased estimates and broken bounds are caught; twins pass."""

import math

import pytest
import torch
from torch import Generator, Tensor, nn

from cflow.base import Base
from cflow.flow import Flow
from cflow.nets import MLP, LipschitzMLP
from cflow.state import State
from cflow.testing import Demands, Finding, Report, check_flow, check_transport
from cflow.testing.bench import perturb
from cflow.transport import (
    Affine,
    Chain,
    CouplingLayer,
    Dequantize,
    Inverse,
    Likelihood,
    Logit,
    ResidualLayer,
    RussianRoulette,
    Stochastic,
    Transport,
    VariationalDequantize,
)

FEW = Demands(func=False, far=None, precisions=())


class Wide(Base):
    """A normal law whose samples, or whose density, are wider than it says."""

    def __init__(self, features: int, *, samples: float = 1.0, log_norm: float = 0.0) -> None:
        super().__init__((features,))
        self.samples, self.log_norm = samples, log_norm

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        return self.samples * torch.randn(*shape, *self.event_shape, generator=generator)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        entries = -0.5 * (x.square() + math.log(2 * math.pi))
        return entries.sum(-1) + self.log_norm


def finding(report: Report, name: str) -> Finding:
    (found,) = [f for f in report.findings if f.name == name]
    return found


def flow_on(base: Base) -> Flow:
    torch.manual_seed(0)
    features = base.event_shape[0]
    if features == 1:
        return Flow(base, Affine(scale=1.5, shift=0.5))
    mask = [k % 2 == 0 for k in range(features)]
    layer = CouplingLayer(mask, MLP(features // 2, 2 * sum(mask), hidden_features=(8,)))
    perturb(layer, 0.3, 0)
    return Flow(base, Chain(layer, Affine(scale=0.5, shift=0.2)))


@pytest.mark.parametrize("features", [1, 2, 3, 6])
def test_samples_that_do_not_follow_the_density_are_caught(features: int) -> None:
    """By a tenth in spread; ten seeds of the sound twin raise no alarm (rate 1e-6 each)."""
    for seed in range(10):
        demands = Demands(func=False, far=None, precisions=(), seed=seed)
        sound = check_flow(flow_on(Wide(features)), demands=demands)
        sound.raise_if_failed()
        assert finding(sound, "samples").outcome == "passed"
    report = check_flow(flow_on(Wide(features, samples=1.1)), demands=FEW)
    assert finding(report, "samples").outcome == "failed"


def test_a_density_of_too_much_mass_is_caught_where_no_grid_reaches() -> None:
    """By a tenth of its mass, in four dimensions; the samples are right."""
    report = check_flow(flow_on(Wide(4, log_norm=math.log(1.1))), demands=FEW)
    assert finding(report, "mass").outcome == "skipped"
    assert finding(report, "samples").outcome == "failed"


class Guess(Transport):
    """y = 2 x with a random ladj: a factor on its mean, and where its noise comes from."""

    def __init__(self, factor: float = 1.0, *, own_noise: bool = True) -> None:
        super().__init__()
        self.factor, self.own_noise = factor, own_noise
        self.log_scale = nn.Parameter(torch.tensor(math.log(2.0)))

    def push(
        self, state: State, context: Tensor | None = None, *, generator: Generator | None = None
    ) -> State:
        return self._move(state, 1.0, generator)

    def pull(
        self, state: State, context: Tensor | None = None, *, generator: Generator | None = None
    ) -> State:
        return self._move(state, -1.0, generator)

    def _move(self, state: State, sign: float, generator: Generator | None) -> State:
        x = state.x * (sign * self.log_scale).exp()
        if state.ladj is None:
            return state._replace(x=x)
        source = generator if self.own_noise else None
        noise = 1 + torch.randn(state.ladj.shape, dtype=state.ladj.dtype, generator=source) / 2
        total = sign * self.log_scale * x.shape[-1] * self.factor * noise
        return state._replace(x=x, ladj=state.ladj + total.to(state.ladj.dtype))

    @property
    def likelihood(self) -> Likelihood:
        return "estimate"

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape


def test_a_biased_estimate_is_caught() -> None:
    check_transport(Guess(), shape=(2,)).raise_if_failed()
    report = check_transport(Guess(0.8), shape=(2,))
    assert {f.name for f in report.failures} == {"ladj of push", "ladj of pull"}


def test_noise_that_no_generator_rules_is_caught() -> None:
    report = check_transport(Guess(own_noise=False), shape=(2,))
    assert "generator" in {f.name for f in report.failures}


def test_too_few_repeats_are_said_so() -> None:
    report = check_transport(Guess(), shape=(2,), demands=Demands(repeats=2))
    assert "too few to see a fault" in finding(report, "ladj of push").message


def test_a_roulette_passes() -> None:
    layer = ResidualLayer(LipschitzMLP(2, hidden_features=(8,)), logdet=RussianRoulette())
    demands = Demands(round_trip=1e-4, jacobian=1e-4, func=False)
    check_transport(layer, shape=(2,), demands=demands).raise_if_failed()


class Forgetful(Stochastic):
    """Uniform dequantisation of two numbers whose account is off by so many nats for each."""

    def __init__(self, levels: int, nats: float = 0.0) -> None:
        super().__init__()
        self.levels, self.nats = levels, nats

    def noise(self, y: Tensor, generator: Generator | None) -> Tensor:
        return torch.rand(y.shape, dtype=torch.float64, generator=generator)

    def _push(self, x: Tensor, context: Tensor | None) -> Tensor:
        return (x * self.levels).floor().clamp(0, self.levels - 1)

    def _pull(
        self, y: Tensor, noise: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        u = (y + noise) / self.levels
        return u, torch.full_like(u, self.nats - math.log(self.levels))


def integers(layer: Stochastic) -> Finding:
    flow = Flow(Wide(2), Chain(Affine(scale=0.5), Inverse(Logit(0.05)), layer))
    return finding(check_flow(flow, demands=FEW, levels=4), "integers")


def test_probabilities_of_integers_that_do_not_sum_to_one_are_caught() -> None:
    """Forgotten levels, and a bound that is a third of a nat too low or too high."""
    noise = CouplingLayer([True, False], MLP(1, 2, context=2, hidden_features=(8,)))
    perturb(noise, 0.3, 0)
    for sound in (Dequantize(4), VariationalDequantize(noise, 4), Forgetful(4)):
        assert integers(sound).outcome == "passed"
    for nats in (math.log(4), 0.15, -0.15):
        found = integers(Forgetful(4, nats))
        assert found.outcome == "failed"
        assert "sum to" in found.message


def test_what_cannot_be_summed_is_skipped_and_the_rest_is_held_to_the_contract() -> None:
    flow = Flow(Wide(2), Chain(Affine(scale=0.5), Inverse(Logit(0.05)), Dequantize(256)))
    report = check_flow(flow, demands=FEW, levels=256)
    report.raise_if_failed()
    assert finding(report, "integers").outcome == "skipped"
    assert finding(report, "ladj of pull").outcome == "passed"
    assert finding(report, "generator").outcome == "passed"
