"""Residual layers as transports: what traces, what refuses, honest errors, the exact switch."""

import math

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

from cflow import Flow, State, tracked
from cflow.base import Gaussian
from cflow.errors import DomainError, ShapeError, SolverError
from cflow.nets import LipschitzConvNet, LipschitzDenseNet, LipschitzMLP
from cflow.transport import (
    ActNorm,
    Chain,
    ExactLogDet,
    FixedPoint,
    Geometric,
    Inverse,
    LogDet,
    ResidualLayer,
    RussianRoulette,
    with_logdet,
)

TIGHT = FixedPoint(1e-13)


def flow(logdet: LogDet | None = None, *, context: int = 0, layers: int = 2) -> Flow:
    """Return a flow that is fast for densities, away from its initialisation."""
    torch.manual_seed(0)
    parts = []
    for _ in range(layers):
        net = LipschitzMLP(3, context=context, hidden_features=(8, 8), coefficient=0.7)
        parts += [Inverse(ResidualLayer(net, logdet=logdet, inverse=TIGHT)), ActNorm((3,))]
    made = Flow(Gaussian(3), Chain(*parts), context_shape=(context,) if context else None)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    return made


class Escape(nn.Module):
    """Not a contraction: slopes of up to 7.5, so that x + g(x) folds over."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return 2.5 * torch.sin(3 * x)


def test_a_planted_network_that_does_not_contract_raises() -> None:
    layer = ResidualLayer(Escape())
    with pytest.raises(SolverError, match=r"ResidualLayer.pull: \d of 8 samples did not arrive"):
        layer.pull(State(torch.randn(8, 2)))
    arrival = layer.solve(torch.zeros(2, 3, 2))
    assert arrival.arrived.shape == (6,)  # g(0) = 0: these arrive
    assert bool(arrival.arrived.all())


@pytest.mark.parametrize("net", ["mlp", "dense", "images"])
def test_the_density_goes_through_torch_func(net: str) -> None:
    torch.manual_seed(0)
    event, context = ((3,), (2,)) if net != "images" else ((2, 3, 3), (2,))
    nets = {
        "mlp": LipschitzMLP(3, context=2, hidden_features=(8,), order=3.0, learn_order=True),
        "dense": LipschitzDenseNet(3, context=2, depth=2, growth=4),
        "images": LipschitzConvNet(2, context=2, hidden_channels=(4,)),
    }
    layer = ResidualLayer(nets[net], event_dim=len(event))
    made = Flow(Gaussian(event), Inverse(layer), context_shape=context)
    x, given = torch.randn(4, *event), torch.randn(4, *context)
    expected = made.log_prob(x, given)
    assert torch.allclose(torch.func.vmap(made.log_prob)(x, given), expected, rtol=0, atol=1e-10)
    score = torch.func.jacrev(lambda a: made.log_prob(a, given[0]))(x[0])
    points = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(made.log_prob(points, given).sum(), points)
    assert torch.allclose(score, gradient[0], rtol=0, atol=1e-10)
    hessian = torch.func.hessian(lambda a: made.log_prob(a, given[0]))(x[0])
    assert bool(torch.isfinite(hessian).all())


@pytest.mark.unchecked
@pytest.mark.parametrize("kind", ["mlp", "images"])
def test_the_cheap_direction_compiles_as_one_graph(kind: str) -> None:
    torch.compiler.reset()
    if kind == "mlp":
        made, x = flow(context=2, layers=1), torch.randn(4, 3)
    else:
        layer = ResidualLayer(LipschitzConvNet(2, context=2, hidden_channels=(4,)), event_dim=3)
        made = Flow(Gaussian((2, 3, 3)), Inverse(layer), context_shape=(2,))
        x = torch.randn(4, 2, 3, 3)
    context = torch.randn(4, 2)
    frames = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda a: made.log_prob(a, context), fullgraph=True, backend=frames)
    assert torch.allclose(compiled(x), made.log_prob(x, context), rtol=0, atol=1e-10)
    pull = torch.compile(lambda a: made.pull(a, context), fullgraph=True, backend=frames)
    assert torch.allclose(pull(x), made.pull(x, context), rtol=0, atol=1e-10)
    assert frames.frame_count == 2


@pytest.mark.unchecked
def test_the_push_of_a_plain_layer_exports_for_any_batch_size() -> None:
    from cflow.export import Sampler

    for event, net in (
        ((3,), LipschitzMLP(3, hidden_features=(8,))),
        ((3,), LipschitzDenseNet(3, depth=1, growth=4)),
        ((2, 3, 3), LipschitzConvNet(2, hidden_channels=(4,))),
    ):
        layer = ResidualLayer(net, event_dim=len(event))
        sampler = Sampler(Flow(Gaussian(event), layer)).eval()
        shapes = {"noise": {0: torch.export.Dim.DYNAMIC}}
        inputs = {"noise": torch.randn(4, *event)}
        program = torch.export.export(sampler, (), inputs, dynamic_shapes=shapes).module()
        x = torch.randn(9, *event)
        assert torch.allclose(program(noise=x), layer.push(State(x)).x, rtol=0, atol=1e-12)


def test_an_estimating_flow_says_so_and_its_standard_error_is_honest() -> None:
    estimating = flow(RussianRoulette(Geometric(0.3), exact_terms=1))
    assert estimating.likelihood == "estimate"
    exact = Flow(Gaussian(3), with_logdet(estimating.transport, ExactLogDet()))
    assert exact.likelihood == "exact"
    x = torch.randn(400, 3)
    with torch.no_grad():
        truth, none = exact.log_prob_with_error(x)
        mean, error = estimating.log_prob_with_error(
            x, repeats=64, generator=torch.Generator().manual_seed(0)
        )
    assert not bool(none.any())
    z = (mean - truth) / error
    # 400 of Student's t with 63 degrees: mean 0 +- 0.05, spread 1.016 +- 0.036; six of those each.
    assert abs(float(z.mean())) < 0.31
    assert abs(float(z.std()) - 1.016) < 0.22
    assert error.mean() > 1e-3


def test_repeats_draw_their_own_number_of_terms() -> None:
    """In one dimension the trace of a random sign is exact: all error is that of the cut."""
    torch.manual_seed(0)
    net = LipschitzMLP(1, hidden_features=(8,), coefficient=0.7)
    optimizer, x = torch.optim.Adam(net.parameters(), lr=1e-2), torch.randn(400, 1)
    for _ in range(100):
        optimizer.zero_grad()
        (net(x) - x).square().mean().backward()
        optimizer.step()
    layer = ResidualLayer(net, logdet=RussianRoulette(Geometric(0.4), exact_terms=0))
    made = Flow(Gaussian(1), Inverse(layer))
    with torch.no_grad():
        truth = Flow(Gaussian(1), with_logdet(made.transport, ExactLogDet())).log_prob(x)
        mean, error = made.log_prob_with_error(
            x, repeats=200, generator=torch.Generator().manual_seed(0)
        )
    z = (mean - truth) / error
    assert error.min() > 1e-3
    assert abs(float(z.mean())) < 0.35  # 400 samples: 0 +- 0.05, and a little for skew
    assert abs(float(z.std()) - 1) < 0.25


def test_both_directions_estimate_the_same_density() -> None:
    made, x = flow(RussianRoulette(exact_terms=6)), torch.randn(2000, 3)
    exact = Flow(Gaussian(3), with_logdet(made.transport, ExactLogDet()))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        points, claimed = made.sample_and_log_prob(2000, generator=generator)
        for value, at in ((claimed, points), (made.log_prob(x, generator=generator), x)):
            gap = value - exact.log_prob(at)
            assert gap.mean().abs() < 6 * gap.std() / math.sqrt(len(gap))  # errs once in 5e8 runs
            assert gap.std() > 1e-4


def test_one_seed_gives_one_answer() -> None:
    made, x = flow(RussianRoulette()), torch.randn(5, 3)
    first, again, other = (
        made.log_prob(x, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_points_only_draw_no_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    flow(RussianRoulette()).pull(torch.randn(5, 3), generator=generator)
    assert torch.equal(generator.get_state(), before)


def test_the_switch_shares_modules_and_keeps_the_rest() -> None:
    made = flow(RussianRoulette()).eval()
    again = with_logdet(made.transport, ExactLogDet())
    assert isinstance(again, Chain)
    assert not again.training
    assert all(a is b for a, b in zip(again.parameters(), made.parameters(), strict=True))
    assert again[1] is made.transport.get_submodule("parts.1")
    part = again[0]
    assert isinstance(part, Inverse)
    assert isinstance(part.transport, ResidualLayer)
    assert part.transport.inverse == TIGHT
    with pytest.raises(DomainError, match="there is no ResidualLayer in ActNorm"):
        with_logdet(ActNorm((3,)), ExactLogDet())


def test_the_density_integrates_to_one() -> None:
    torch.manual_seed(1)
    layer = ResidualLayer(LipschitzMLP(2, hidden_features=(16,), coefficient=0.95))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    for transport in (layer, Inverse(layer)):
        made = Flow(Gaussian(2), transport)
        line = torch.linspace(-14, 14, 281)
        grid = torch.cartesian_prod(line, line)
        with torch.no_grad():
            mass = made.log_prob(grid).exp().sum() * 0.1**2
        assert abs(float(mass) - 1) < 1e-3


def test_low_precision_points_and_weights_run_in_float32() -> None:
    layer = ResidualLayer(LipschitzMLP(3, hidden_features=(8,)))
    x = torch.randn(6, 3)
    exact = layer.push(tracked(x))
    low = layer.bfloat16().push(tracked(x.bfloat16()))
    assert low.x.dtype == torch.bfloat16
    assert low.ladj is not None
    assert exact.ladj is not None
    assert low.ladj.dtype == torch.float32
    assert torch.allclose(low.ladj.double(), exact.ladj, rtol=0, atol=0.05)
    back = layer.pull(low)
    assert torch.allclose(back.x.double(), x, rtol=0.03, atol=0.05)


def test_a_network_of_another_shape_and_a_stray_context_are_refused() -> None:
    layer = ResidualLayer(nn.Bilinear(3, 2, 4))
    with pytest.raises(ShapeError, match=r"must keep the shape \(5, 3\) of the points"):
        layer.push(State(torch.randn(5, 3)), torch.randn(5, 2))
    made = ResidualLayer(LipschitzMLP(3, context=2))
    with pytest.raises(ShapeError, match=r"context must have the batch axes \(5,\)"):
        made.push(State(torch.randn(5, 3)), torch.randn(1, 2))
    with pytest.raises(ShapeError, match="points need at least 3 axes"):
        ResidualLayer(LipschitzConvNet(1), event_dim=3).push(State(torch.randn(2, 2)))
