"""Variational objectives, held to Gaussians: values, gradients, and their variances."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from cflow import Flow, nll, recipes
from cflow.base import Gaussian
from cflow.errors import DomainError, ShapeError
from cflow.field import Hutchinson, MLPField
from cflow.nets import MLP
from cflow.ode import Euler
from cflow.train import Trainer
from cflow.transport import ODE, ActNorm, Chain, CouplingLayer, Dequantize, Inverse, Logit
from cflow.variational import LinearAnnealing, alpha_divergence, drawn, reverse_kl

MEAN, SCALE = torch.tensor([1.0, -0.5]).double(), torch.tensor([0.7, 1.6]).double()
LOG_Z = 1.5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def log_target(x: Tensor, mean: Tensor = MEAN) -> Tensor:
    """A Gaussian whose mass is exp(LOG_Z)."""
    z = (x - mean) / SCALE
    return LOG_Z - (0.5 * z.square() + SCALE.log() + 0.5 * math.log(2 * math.pi)).sum(-1)


def gaussian(shift: Tensor, scale: Tensor) -> tuple[Flow, ActNorm]:
    layer = ActNorm((2,))
    with torch.no_grad():
        layer.shift.copy_(shift)
        layer.log_scale.copy_(scale.log())
    return Flow(Gaussian(2), layer), layer


def off() -> tuple[Flow, ActNorm]:
    return gaussian(torch.tensor([0.6, 0.1]), torch.tensor([0.9, 1.2]))


def exact_kl(layer: ActNorm) -> Tensor:
    ratio = layer.log_scale.exp() / SCALE
    miss = (layer.shift - MEAN) / SCALE
    return 0.5 * (ratio.square() + miss.square() - 1 - 2 * ratio.log()).sum()


def gradients(flow: Flow, loss: Callable[[int], Tensor], count: int) -> Tensor:
    """Return independent gradient estimates, `(count, parameters)`."""
    found = []
    for seed in range(count):
        grads = torch.autograd.grad(loss(seed).mean(), list(flow.parameters()))
        found.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(found)


def z_scores(found: Tensor, truth: Tensor) -> Tensor:
    return (found.mean(0) - truth) / (found.std(0) / len(found) ** 0.5)


@pytest.mark.parametrize("gradient", ["path", "total", "score"])
def test_reverse_kl_has_the_value_and_the_gradient_of_the_exact_one(gradient) -> None:
    """Four gradients and a value are within 5 standard errors: a false alarm in 1e5 seeds."""
    flow, layer = off()
    values = reverse_kl(flow, log_target, samples=20_000, gradient=gradient, generator=seeded())
    error = (values.std() / len(values) ** 0.5).item()
    assert abs(values.mean().item() - (exact_kl(layer).item() - LOG_Z)) < 5 * error
    truth = torch.autograd.grad(exact_kl(layer), list(flow.parameters()))
    loss = lambda seed: reverse_kl(
        flow, log_target, samples=50, gradient=gradient, generator=seeded(seed)
    )
    scores = z_scores(gradients(flow, loss, 400), torch.cat([g.flatten() for g in truth]))
    assert scores.abs().max() < 5


def test_at_the_optimum_the_path_gradient_has_no_variance() -> None:
    flow, _ = gaussian(MEAN, SCALE)
    loss = lambda kind: (
        lambda seed: reverse_kl(flow, log_target, samples=4, gradient=kind, generator=seeded(seed))
    )
    assert gradients(flow, loss("path"), 20).abs().max() < 1e-12
    assert gradients(flow, loss("total"), 20).std(0).min() > 0.05
    single = lambda seed: alpha_divergence(flow, log_target, samples=4, generator=seeded(seed))
    assert gradients(flow, single, 20).abs().max() < 1e-12


def test_score_needs_no_gradient_of_the_target() -> None:
    flow, _ = off()
    blind = lambda x: log_target(x.detach())
    seen = reverse_kl(flow, log_target, samples=50, gradient="score", generator=seeded())
    unseen = reverse_kl(flow, blind, samples=50, gradient="score", generator=seeded())
    for loss in (seen, unseen):
        loss.mean().backward(retain_graph=True)
    first = torch.autograd.grad(seen.mean(), list(flow.parameters()))
    second = torch.autograd.grad(unseen.mean(), list(flow.parameters()))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


def exact_renyi(layer: ActNorm, alpha: float) -> float:
    """D_alpha(q || p) of diagonal Gaussians (Gil et al., 2013), for alpha in (0, 1)."""
    q, p = layer.log_scale.exp().detach().square(), SCALE.square()
    mixed = alpha * p + (1 - alpha) * q
    miss = (layer.shift.detach() - MEAN).square()
    logs = (mixed / (q.pow(1 - alpha) * p.pow(alpha))).log() / (2 * (alpha - 1))
    return (alpha / 2 * miss / mixed - logs).sum().item()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
def test_the_divergence_of_many_samples_is_the_exact_one(alpha: float) -> None:
    flow, layer = off()
    value = alpha_divergence(
        flow, log_target, alpha=alpha, samples=200_000, generator=seeded()
    ).item()
    exact = 0.0 if alpha == 0 else exact_kl(layer).item() if alpha == 1 else math.nan
    if math.isnan(exact):
        exact = exact_renyi(layer, alpha)
    assert value == pytest.approx(exact - LOG_Z, abs=0.01)


def test_the_bound_falls_with_alpha_and_rises_with_the_samples() -> None:
    _, layer = off()
    flow, many = Flow(Gaussian(2), layer, context_shape=(1,)), torch.zeros(4000, 1)
    about = lambda x, context: log_target(x)

    def mean(alpha: float, samples: int) -> float:
        values = alpha_divergence(
            flow, about, alpha=alpha, samples=samples, context=many, generator=seeded()
        )
        return -values.mean().item()

    assert mean(0.0, 16) > mean(0.0, 4) > mean(0.0, 1)
    assert mean(0.0, 4) > mean(0.5, 4) > mean(1.0, 4)
    assert mean(0.0, 4) < LOG_Z


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_doubly_reparameterised_gradients_are_unbiased_and_quieter(alpha: float) -> None:
    """Both estimate one gradient, of flow and target: 5 standard errors, a false alarm in 1e5."""
    flow, _ = off()
    centre = MEAN.clone().requires_grad_()
    target = partial(log_target, mean=centre)
    both = [*flow.parameters(), centre]
    found = {}
    for doubly in (True, False):
        loss = lambda seed, doubly=doubly: alpha_divergence(
            flow,
            target,
            alpha=alpha,
            samples=8,
            doubly_reparameterized=doubly,
            generator=seeded(seed + 10_000 * doubly),
        )
        grads = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss(k), both)])
            for k in range(1500)
        ]
        found[doubly] = torch.stack(grads)
    difference = found[True].mean(0) - found[False].mean(0)
    error = sum(g.var(0) / len(g) for g in found.values()) ** 0.5
    assert (difference.abs() / error).max() < 5
    quieter = found[True].var(0)[:4] / found[False].var(0)[:4]
    assert quieter.max() < (0.7 if alpha < 1 else 1.0)


def test_values_do_not_depend_on_the_gradient_asked_for() -> None:
    flow = recipes.realnvp(2, transforms=2, hidden_features=(8,))
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    draws = [
        reverse_kl(flow, log_target, samples=9, gradient=kind, generator=seeded())
        for kind in ("path", "total", "score")
    ]
    torch.testing.assert_close(draws[0], draws[1])
    torch.testing.assert_close(draws[0], draws[2])
    bounds = [
        alpha_divergence(
            flow, log_target, samples=9, doubly_reparameterized=doubly, generator=seeded()
        )
        for doubly in (True, False)
    ]
    torch.testing.assert_close(bounds[0], bounds[1])
    with torch.no_grad():
        silent = reverse_kl(flow, log_target, samples=9, generator=seeded())
    assert not silent.requires_grad
    torch.testing.assert_close(silent, draws[0].detach())


def test_contexts_are_amortised_over() -> None:
    layer = CouplingLayer([True, False], MLP(1, 2, context=3))
    flow = Flow(Gaussian(2), layer, context_shape=(3,))
    context = torch.randn(5, 3, requires_grad=True)
    about = lambda x, c: log_target(x, mean=c[..., :2])
    values = reverse_kl(flow, about, context=context, samples=4)
    assert values.shape == (4, 5)
    bound = alpha_divergence(flow, about, context=context, samples=4)
    assert bound.shape == (5,)
    (slope,) = torch.autograd.grad(bound[2], context)  # of the target and of the samples
    assert bool((slope[2] != 0).all())
    assert not slope[[0, 1, 3, 4]].any()


def test_forward_kl_is_nll() -> None:
    """E_p[-log q] - H(p) = KL(p || q), within 5 standard errors."""
    flow, layer = off()
    x = MEAN + SCALE * torch.randn(40_000, 2, generator=seeded())
    values = nll(flow, x) + (log_target(x) - LOG_Z)
    ratio = SCALE / layer.log_scale.exp()
    miss = (layer.shift - MEAN) / layer.log_scale.exp()
    exact = 0.5 * (ratio.square() + miss.square() - 1 - 2 * ratio.log()).sum()
    assert abs((values.mean() - exact).item()) < 5 * values.std().item() / 200


def test_a_trainer_fits_a_correlated_target() -> None:
    cov = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    law = torch.distributions.MultivariateNormal(torch.tensor([2.0, -1.0]), cov)
    flow = recipes.realnvp(2, transforms=2, hidden_features=(8,))
    loss = drawn(partial(reverse_kl, log_target=law.log_prob, samples=64))
    Trainer(flow, loss, steps=300, lr=2e-2, progress=False).fit(torch.zeros(1))
    with torch.no_grad():
        assert reverse_kl(flow, law.log_prob, samples=2000).mean().item() < 0.02


def test_bad_input_is_refused() -> None:
    flow, _ = off()
    with pytest.raises(ShapeError, match=r"one number for each point.*sum over the event"):
        reverse_kl(flow, lambda x: -x.square())
    with pytest.raises(DomainError, match=r"alpha must lie in \[0, 1\], got 2"):
        alpha_divergence(flow, log_target, alpha=2.0)
    with pytest.raises(DomainError, match="samples must be positive"):
        reverse_kl(flow, log_target, samples=0)
    bound = Flow(Gaussian(2), Chain(Inverse(Logit()), Dequantize(3)))
    with pytest.raises(DomainError, match="exact or estimate, got likelihood 'bound'"):
        reverse_kl(bound, log_target)
    noisy = Flow(Gaussian(2), ODE(MLPField(2), Euler(2), divergence=Hutchinson()))
    with pytest.raises(DomainError, match="must be exact, got likelihood 'estimate'"):
        alpha_divergence(noisy, log_target)


def test_annealing_is_linear_and_refuses_no_steps() -> None:
    schedule = LinearAnnealing(4, start=1.0, end=0.0)
    assert [schedule.at(k) for k in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    with pytest.raises(DomainError, match="steps must be positive"):
        LinearAnnealing(0)
