"""What a module for export does by itself: its options, its refusals, its noise."""

from collections.abc import Callable

import pytest
import torch

from cflow import Flow, recipes
from cflow.base import (
    Base,
    ClassConditional,
    DiagonalGaussian,
    FullGaussian,
    StudentT,
    Uniform,
    tempered,
)
from cflow.errors import DomainError, ShapeError
from cflow.export import Encoder, LogProb, Sampler
from cflow.export.noise import noise_law
from cflow.field import ClassifierFree
from cflow.ode import Dopri5, Euler, Heun
from cflow.samples import SDE, CurvedEuler, guided, with_sampler
from cflow.transport import Affine, Chain, Guidance


def spread(flow: Flow, std: float = 0.3) -> Flow:
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return flow


def test_steps_solver_and_guidance_are_those_of_the_flow() -> None:
    flow = spread(recipes.cnf(2, 3, hidden_features=(8,)))
    noise, context = torch.randn(5, 2), torch.randn(5, 3)
    field = lambda field: ClassifierFree(field, 2.0, null=0.0)
    for sampler, other in (
        (Sampler(flow, 3), flow.with_solver(Euler(3))),
        (Sampler(flow, 3, solver=Heun(1)), flow.with_solver(Heun(3))),
        (Sampler(flow, 3, guidance=2.0), guided(flow, field).with_solver(Euler(3))),
        (Sampler(flow, 3, guidance=field), guided(flow, field).with_solver(Euler(3))),
    ):
        assert torch.equal(sampler(noise, context), other.push(noise, context))


def test_a_scale_guides_away_from_the_null_of_the_field() -> None:
    flow = spread(recipes.dit((1, 4, 4), 3, width=8, layers=1, heads=2))
    noise, labels = torch.randn(2, 1, 4, 4), torch.tensor([0, 2])
    null = flow.transport.field.null
    assert null == 3
    away = guided(flow, lambda field: ClassifierFree(field, 2.0, null=null))
    found = Sampler(flow, 2, guidance=2.0)(noise, labels)
    assert torch.equal(found, away.with_solver(Euler(2)).push(noise, labels))


def test_one_condition_can_be_built_in() -> None:
    flow = spread(recipes.cnf(2, 3, hidden_features=(8,)))
    noise, one = torch.randn(5, 2), torch.randn(3)
    for kind in (Sampler, Encoder, LogProb):
        fixed, free = kind(flow, 2, context=one), kind(flow, 2)
        assert fixed.context_shape is None
        assert torch.equal(fixed(noise), free(noise, one.expand(5, 3)))
    assert "fixed" in dict(Sampler(flow, 2, context=one).named_buffers())


def test_directions_are_inverse_and_the_likelihood_is_that_of_the_flow() -> None:
    flow = spread(recipes.realnvp(3, transforms=3, hidden_features=(8,)))
    noise = torch.randn(20, 3)
    x = Sampler(flow)(noise)
    assert (x - noise).abs().max() > 0.1
    assert torch.allclose(Encoder(flow)(x), noise, rtol=0, atol=1e-12)
    assert torch.equal(LogProb(flow)(x), flow.log_prob(x))


LAWS: dict[str, Callable[[], Base]] = {
    "classes": lambda: ClassConditional(3, 2),
    "conditioner": lambda: DiagonalGaussian(2, torch.nn.Linear(1, 4)),
    "full": lambda: FullGaussian(2),
    "tempered": lambda: tempered(FullGaussian(2), 0.5),
    "box": lambda: Uniform(2, low=torch.tensor([-1.0, 2.0]), high=torch.tensor([3.0, 5.0])),
}


@pytest.mark.parametrize("name", LAWS)
def test_standard_noise_has_the_law_of_the_base(name: str) -> None:
    base = LAWS[name]()
    for parameter in base.parameters():
        parameter.data.normal_()
    context = {"classes": torch.tensor(2), "conditioner": torch.ones(1)}.get(name)
    shape = None if context is None else tuple(context.shape)
    flow = Flow(base, Chain(Affine(scale=2.0, shift=1.0)), context_shape=shape)
    sampler, encoder = Sampler(flow, context=context), Encoder(flow, context=context)
    uniform = noise_law(base) == "Uniform"
    assert uniform or noise_law(base) == "Gaussian"
    noise = torch.rand(20_000, 2) if uniform else torch.randn(20_000, 2)
    x, direct = sampler(noise).detach(), flow.sample(20_000, context)
    assert torch.allclose(encoder(x), noise, rtol=0, atol=1e-12)
    # Means and second moments of 20000 draws, four comparisons of each of the five laws at six
    # standard errors: a right sampler fails in less than one of 10^7 runs.
    for moment in (lambda x: x, lambda x: x[:, :1] * x):
        a, b = moment(x), moment(direct)
        error = ((a.var(0) + b.var(0)) / len(x)).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 6 * error).all()


def test_other_laws_are_taken_as_they_are() -> None:
    base = StudentT(2)
    base.mean.data.fill_(3.0)
    assert noise_law(base) == "StudentT"
    noise = torch.randn(4, 2)
    assert torch.equal(Sampler(Flow(base, Chain()))(noise), noise)


def test_refusals_say_what_to_do() -> None:
    flow, layers = recipes.cnf(2), recipes.realnvp(2, transforms=1)
    images = recipes.images(recipes.realnvp(16, transforms=1), (4, 4), levels=17)
    for call, error, words in (
        (lambda: Sampler(flow), DomainError, "pass steps=4"),
        (lambda: Sampler(layers, steps=4), DomainError, "leave out steps"),
        (lambda: Sampler(flow, 4, solver=Dopri5()), DomainError, "takes no number of steps"),
        (lambda: Sampler(layers, guidance=2.0), DomainError, "no ODE"),
        (lambda: Sampler(layers, context=torch.ones(2)), DomainError, "unconditional"),
        (lambda: Sampler(recipes.cnf(2, 3), 4, context=torch.ones(2)), ShapeError, "one condition"),
        (lambda: LogProb(recipes.ffjord(2), 4), DomainError, r"divergence=Exact\(\)"),
        (lambda: LogProb(images), DomainError, "bound"),
        (lambda: Encoder(images), DomainError, "Dequantize draws noise"),
        (lambda: Sampler(with_sampler(flow, SDE(4))), DomainError, "draws noise on the way"),
        (lambda: Sampler(layers)(torch.zeros(5, 3)), ShapeError, "noise must end in shape"),
    ):
        with pytest.raises(error, match=words):
            call()


def test_a_sampler_without_noise_is_exported_as_it_is() -> None:
    flow = with_sampler(spread(recipes.cnf(2, hidden_features=(8,))), CurvedEuler(3))
    noise = torch.randn(5, 2)
    assert torch.equal(Sampler(flow)(noise), flow.push(noise))


def test_transformer_layers_take_their_own_guidance() -> None:
    flow = recipes.tarflow((4, 4), 3, patch=2, width=8, blocks=1, layers=1, heads=2, fast="sample")
    spread(flow)
    noise, labels = torch.randn(2, 4, 4), torch.tensor([0, 1])
    way = Guidance(weight=1.5)
    assert torch.equal(
        Sampler(flow, guidance=way)(noise, labels), guided(flow, way).push(noise, labels)
    )
