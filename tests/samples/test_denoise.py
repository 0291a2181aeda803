"""Guided flows, and denoising against laws whose clean points are known in closed form."""

import pytest
import torch
from torch import Generator, Tensor, nn

from cflow import Flow, State, recipes
from cflow.base import Base, Gaussian
from cflow.errors import DomainError
from cflow.field import Analytic, AutoGuided, Exact, FunctionField, GaussianMixture, MixtureField
from cflow.ode import RK4, Checkpoint
from cflow.samples import denoise, guided
from cflow.transport import ODE, Affine, Chain, Guidance, LabelDropout

SIGMA = 0.4
CENTRES = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]], dtype=torch.float64)
SPREADS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)


class NoisyMixture(Base):
    """Three Gaussian clouds in the plane after noise of SIGMA; a label picks one, -1 all."""

    def __init__(self) -> None:
        super().__init__((2,))

    def joint(self, x: Tensor) -> Tensor:
        variance = SPREADS**2 + SIGMA**2
        square = (x[..., None, :] - CENTRES).square().sum(-1)
        return (
            -0.5 * square / variance - torch.log(2 * torch.pi * variance) - torch.tensor(3.0).log()
        )

    def clean(self, x: Tensor) -> Tensor:
        """Return the posterior mean of the clean point."""
        share = (SPREADS**2 / (SPREADS**2 + SIGMA**2))[:, None]
        each = CENTRES + share * (x[..., None, :] - CENTRES)
        return (self.joint(x).softmax(-1)[..., None] * each).sum(-2)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.joint(x).logsumexp(-1)

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        which = torch.randint(0, 3, shape, generator=generator)
        noise = torch.randn((*shape, 2), generator=generator)
        return CENTRES[which] + noise * (SPREADS[which, None] ** 2 + SIGMA**2).sqrt()


def test_denoising_the_exact_noisy_density_gives_the_posterior_mean() -> None:
    law = NoisyMixture()
    flow = Flow(law, Chain())
    x = flow.sample((40, 50))
    assert torch.allclose(denoise(flow, x, sigma=SIGMA), law.clean(x), rtol=0, atol=1e-12)


def test_denoised_points_are_closer_to_the_clean_ones() -> None:
    which = torch.randint(0, 3, (20_000,))
    clean = CENTRES[which] + SPREADS[which, None] * torch.randn(20_000, 2)
    noisy = clean + SIGMA * torch.randn(20_000, 2)
    better = denoise(Flow(NoisyMixture(), Chain()), noisy, sigma=SIGMA)
    before, after = ((p - clean).square().sum(-1).mean() for p in (noisy, better))
    assert before / (2 * SIGMA**2) == pytest.approx(1, abs=0.05)  # 7 standard errors
    # Of the noise, the share s^2 / (s^2 + sigma^2) of each cloud cannot be told from the cloud.
    share = SPREADS**2 / (SPREADS**2 + SIGMA**2)
    assert after == pytest.approx((2 * SIGMA**2 * share).mean().item(), rel=0.1)


def model(classes: int = 3, **options) -> Flow:
    flow = recipes.tarflow(
        (4, 4), classes, patch=2, width=16, blocks=2, layers=1, heads=2, **options
    )
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.2)
    return flow.eval()


def test_denoising_follows_labels_and_changes_nothing() -> None:
    flow, x = model(noise=0.3), torch.randn(5, 4, 4)
    labels = torch.tensor([0, 1, 2, -1, 0])
    given = x.clone()
    with torch.no_grad():
        better = denoise(flow, x, labels, sigma=0.3)
    assert not better.requires_grad
    assert torch.equal(x, given)
    points = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(flow.log_prob(points, labels).sum(), points)
    assert torch.allclose(better, x + 0.09 * score, rtol=0, atol=1e-12)
    assert denoise(flow, x[0], labels, sigma=0.3).shape == (5, 4, 4)
    assert all(parameter.grad is None for parameter in flow.parameters())


def test_denoising_refuses_what_has_no_score() -> None:
    flow, labels = model(noise=0.3), torch.tensor([0])
    with pytest.raises(DomainError, match=r"call flow.eval\(\)"):
        denoise(flow.train(), torch.zeros(1, 4, 4), labels, sigma=0.3)
    with pytest.raises(DomainError, match="ends in dequantisation"):
        denoise(model(levels=17), torch.zeros(1, 4, 4), labels, sigma=0.3)
    with pytest.raises(DomainError, match="denoise: sigma must be positive"):
        denoise(flow.eval(), torch.zeros(1, 4, 4), labels, sigma=0.0)
    with pytest.raises(DomainError, match="guided samples follow no density"):
        denoise(guided(flow, Guidance()), torch.zeros(1, 4, 4), labels, sigma=0.3)


def test_a_guided_flow_samples_and_refuses_densities() -> None:
    flow, labels = model(), torch.tensor([0, 1, 2])
    again = guided(flow, Guidance(2.0))
    x = again.sample(5, labels, generator=torch.Generator().manual_seed(0))
    plain = flow.sample(5, labels, generator=torch.Generator().manual_seed(0))
    assert x.shape == (5, 3, 4, 4)
    assert bool((x - plain).abs().amax((-2, -1)).gt(1e-4).all())
    for call in (
        lambda: again.log_prob(x, labels),
        lambda: again.pull(x, labels),
        lambda: again.sample_and_log_prob(5, labels),
        lambda: again.log_prob_with_error(x, labels),
    ):
        with pytest.raises(DomainError, match="guided samples follow no density"):
            call()


def test_guidance_leaves_the_flow_as_it_is() -> None:
    flow, x, labels = model(), torch.randn(5, 4, 4), torch.tensor([0, 1, 2, -1, 0])
    before, names = flow.log_prob(x, labels), list(flow.state_dict())
    again = guided(flow, Guidance(2.0, temperature=0.5))
    again.sample(2, labels)
    assert torch.equal(flow.log_prob(x, labels), before)
    assert list(flow.state_dict()) == names
    assert not again.training
    assert not any(part.training for part in flow.modules())
    assert {id(p) for p in again.parameters()} == {id(p) for p in flow.parameters()}
    flow.train()
    assert guided(flow, Guidance()).training
    assert all(part.training for part in flow.modules())


def test_guidance_without_weight_is_the_flow() -> None:
    flow, labels = model(), torch.tensor([0, 1, 2])
    draws = [
        f.sample(4, labels, generator=torch.Generator().manual_seed(0))
        for f in (flow, guided(flow, Guidance(0.0)))
    ]
    assert torch.equal(*draws)


@pytest.mark.parametrize("fast", ["density", "sample"])
def test_a_guided_bound_flow_samples_integers(fast: str) -> None:
    flow, labels = model(levels=17, fast=fast), torch.tensor([0, 1])
    x = guided(flow, Guidance(1.0)).sample(3, labels)
    assert bool((x == x.round()).all() & (x >= 0).all() & (x <= 16).all())


def test_the_fields_of_odes_are_guided_wherever_they_stand() -> None:
    law = GaussianMixture(torch.ones(1, 2), 0.5)
    field = MixtureField(GaussianMixture(torch.zeros(1, 2)), law)
    ode = ODE(field, RK4(20), adjoint=Checkpoint())
    flow = Flow(Gaussian(2), Chain(ode, Affine(2.0))).eval()
    faster = lambda old: AutoGuided(old, lambda t, x, c: torch.zeros_like(x), scale=1.5)
    again = guided(flow, faster)
    (new,) = (part for part in again.transport.modules() if isinstance(part, ODE))
    assert (new.solver, new.adjoint, new.training) == (RK4(20), Checkpoint(), False)
    assert isinstance(new.divergence, Exact)  # a guided field knows no closed form
    assert isinstance(ode.divergence, Analytic)
    assert ode.field is field
    x0 = torch.randn(5, 2)
    expected = ODE(FunctionField(lambda t, x, c: 1.5 * field(t, x)), RK4(20)).push(State(x0)).x
    assert torch.allclose(again.push(x0), 2 * expected)
    again = guided(flow, lambda old: field)  # the exchange may be any
    assert torch.equal(again.push(x0), flow.push(x0))
    with pytest.raises(DomainError, match="the flow has no ODE"):
        guided(Flow(Gaussian(2), Chain()), faster)


def test_flows_without_transformers_are_refused() -> None:
    with pytest.raises(DomainError, match="only a TransformerLayer can be guided"):
        guided(Flow(Gaussian(2), Chain(LabelDropout(Chain()))), Guidance())


@pytest.mark.unchecked
def test_denoising_refuses_integers() -> None:
    with pytest.raises(DomainError, match="denoise: points must be floating"):
        denoise(Flow(Gaussian(2), Chain()), torch.zeros(1, 2, dtype=torch.long), sigma=0.3)


@pytest.mark.unchecked
def test_guided_samplers_export() -> None:
    from cflow.export import Sampler

    flow = guided(model(), Guidance(2.0, temperature=0.7))
    inputs = {"noise": torch.randn(3, 4, 4), "context": torch.tensor([0, 1, 2])}
    shapes = {name: {0: torch.export.Dim.DYNAMIC} for name in inputs}
    program = torch.export.export(Sampler(flow).eval(), (), inputs, dynamic_shapes=shapes)
    noise, labels = torch.randn(5, 4, 4), torch.tensor([2, 1, 0, -1, 2])
    made = program.module()(noise=noise, context=labels)
    assert torch.allclose(made, flow.push(noise, labels), rtol=0, atol=1e-10)
