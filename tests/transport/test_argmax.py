"""Argmax dequantisation on discrete laws that are known: the density, the bound, its equality."""

import math

import pytest
import torch
from torch import Tensor

from cflow import Flow, State, nll, tracked
from cflow.base import Gaussian
from cflow.errors import DomainError, ShapeError
from cflow.nets import MLP
from cflow.train import Trainer
from cflow.transport import (
    Affine,
    AffineMap,
    ArgmaxDequantize,
    Chain,
    Elementwise,
    GaussianNoise,
    Layer,
    Reshape,
)

normal = torch.distributions.Normal(0.0, 1.0)
MEANS, SCALES = torch.tensor([[0.5, -0.2, 0.1]]), torch.tensor([[0.7, 1.3, 1.0]])
REACH = torch.arange(-14.0, 40.0, 0.12)  # the bent entries fall off like exp(-u)


def known(values: int, layer: ArgmaxDequantize) -> Flow:
    """Build a flow of one token whose vectors are independent normal numbers."""
    part = Affine(SCALES[:, :values], MEANS[:, :values])
    return Flow(Gaussian((1, values)), Chain(part, layer))


def law(values: int) -> Tensor:
    """Return P(x) = int p(v_x) prod_k P(v_k < v_x) dv_x by a sum that is exact to rounding."""
    means, scales = MEANS[0, :values].double(), SCALES[0, :values].double()
    v = torch.linspace(-12, 12, 20001)[:, None]
    below = normal.cdf((v - means) / scales)
    density = normal.log_prob((v - means) / scales).exp() / scales
    rest = below.prod(-1, keepdim=True) / below.clamp_min(1e-300)
    return (density * rest).sum(0) * (v[1] - v[0])


def conditional(values: int, tokens: int = 1) -> Elementwise:
    size = values * tokens
    net = MLP(size, 2 * size, hidden_features=(16,))
    return Elementwise(AffineMap(), (tokens, values), conditioner=net)


def perturbed(layer: ArgmaxDequantize) -> ArgmaxDequantize:
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return layer


def test_the_density_is_that_of_the_formula_and_integrates_to_one() -> None:
    """Of v = (top, top - w) the noise is u = (top, top - log(e^w - 1)), and s = 1 - e^-w."""
    layer = ArgmaxDequantize(2)
    top = torch.arange(-9.0, 9.0, 0.1)[:, None]
    log_w = torch.arange(-30.0, 3.5, 0.02)  # uniform in the logarithm of w
    w = log_w.exp()
    bent = top - (w + torch.log(-torch.expm1(-w)))
    log_q = normal.log_prob(top) + normal.log_prob(bent) - torch.log(-torch.expm1(-w))
    assert (log_q + log_w).exp().sum().item() * 0.1 * 0.02 == pytest.approx(1, abs=1e-9)
    for x in (0, 1):
        u = torch.stack([top.expand_as(bent), bent], -1)[::10, 400::50]
        u = u if x == 0 else u.flip(-1)
        y = torch.full(u.shape[:-1], x)[..., None]
        v, ladj = layer._pull(y, u[..., None, :], None, tracked=True)
        v = v[..., 0, :] if x == 0 else v[..., 0, :].flip(-1)
        torch.testing.assert_close(v[..., 0] - v[..., 1], w[400::50].expand(v.shape[:-1]))
        torch.testing.assert_close(ladj, -log_q[::10, 400::50])


def test_ladj_is_that_of_the_jacobian_less_the_density_of_the_noise() -> None:
    layer = perturbed(ArgmaxDequantize(3, conditional(3, 2)))
    noise, y = torch.randn(4, 2, 3), torch.tensor([[0, 1], [2, 2], [1, 0], [0, 2]])
    _, ladj = layer._pull(y, noise, None, tracked=True)
    for k in range(len(y)):
        pull = lambda e, k=k: layer._pull(y[k], e, None, tracked=False)[0]
        jacobian = torch.autograd.functional.jacobian(pull, noise[k]).reshape(6, 6)
        expected = torch.linalg.slogdet(jacobian).logabsdet - normal.log_prob(noise[k]).sum()
        assert ladj is not None
        torch.testing.assert_close(ladj[k], expected)


@pytest.mark.parametrize("learned", [False, True])
def test_its_exponential_averages_to_the_probability_and_it_is_below(learned: bool) -> None:
    """On a grid of noise both expectations are exact: the sign of log q and all constants count."""
    layer = perturbed(ArgmaxDequantize(2, conditional(2) if learned else None))
    flow, truth = known(2, layer), law(2)
    grid = torch.cartesian_prod(REACH, REACH)[:, None, :]
    log_weight = normal.log_prob(grid).sum((-2, -1)) + 2 * math.log(0.12)
    rest = Flow(flow.base, flow.transport[:-1])  # type: ignore[index]
    for x in (0, 1):
        with torch.no_grad():
            v, ladj = layer._pull(torch.full((len(grid), 1), x), grid, None, tracked=True)
            assert ladj is not None
            value = rest.log_prob(v) + ladj
        mean = (log_weight + value).exp().sum().item()
        assert mean == pytest.approx(truth[x].item(), abs=1e-5)
        assert (log_weight.exp() * value).sum() < truth[x].log() - 0.05


def test_the_bound_is_never_above_the_probability() -> None:
    """Five standard errors: a false alarm in 1e-6 of runs."""
    flow, truth = known(3, perturbed(ArgmaxDequantize(3, conditional(3)))), law(3)
    assert truth.sum().item() == pytest.approx(1)
    assert flow.likelihood == "bound"
    x = torch.arange(3)[:, None]
    value, error = flow.log_prob_with_error(x, repeats=20_000)
    assert bool((value < truth.log() + 5 * error).all())
    drawn = flow.transport.push(State(flow.base.sample((40_000,)))).x
    assert drawn.dtype == torch.int64
    counts = torch.bincount(drawn[:, 0], minlength=3)
    spread = (40_000 * truth * (1 - truth)).sqrt()
    assert bool(((counts - 40_000 * truth).abs() < 5 * spread).all())


class PerfectNoise(Layer):
    """Give u such that v is distributed as independent normal numbers whose largest is known.

    Of K the largest has the distribution function Phi^K, and the others are cut off there.
    """

    def __init__(self) -> None:
        super().__init__(event_dim=2)

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        assert context is not None
        own = context.reshape(x.shape) == 1
        top = normal.icdf(normal.cdf((x * own).sum(-1, keepdim=True)) ** (1 / x.shape[-1]))
        v = normal.icdf(normal.cdf(x) * normal.cdf(top))
        gap = top - v
        u = torch.where(own, top, top - gap - torch.log(-torch.expm1(-gap)))
        # slopes dv/dx, and du/dv = 1 / (1 - e^-gap) of the others: a triangular Jacobian
        size = x.shape[-1]
        slope = normal.log_prob(x) - torch.where(
            own,
            normal.log_prob(top) + math.log(size) + (size - 1) * normal.cdf(top).log(),
            normal.log_prob(v) - normal.cdf(top).log() + torch.log(-torch.expm1(-gap)),
        )
        return u, slope.sum((-2, -1)) if tracked else None

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        raise AssertionError("a bound draws noise, and never takes any back")


@pytest.mark.parametrize("values", [2, 3, 5])
def test_the_true_law_of_the_vectors_makes_the_bound_an_equality(values: int) -> None:
    flow = Flow(Gaussian((2, values)), ArgmaxDequantize(values, PerfectNoise()))
    x = torch.randint(values, (200, 2))
    truth = torch.full((200,), -2 * math.log(values))
    torch.testing.assert_close(flow.log_prob(x), truth, atol=1e-7, rtol=0)


def test_learned_noise_closes_the_gap() -> None:
    """It learns the law of v given x up to what softplus of a normal number can be."""
    layer = ArgmaxDequantize(2, conditional(2))
    flow, truth = known(2, layer), law(2)
    x = torch.tensor([[0], [1]])

    def gap() -> Tensor:
        with torch.no_grad():
            return truth.log() - flow.log_prob(x.expand(20_000, 2, 1)).mean(0)

    before = gap()
    data = x[torch.multinomial(truth, 512, replacement=True)]
    Trainer(flow, nll, steps=150, batch=128, lr=2e-2, progress=False).fit(data)
    after = gap()
    assert bool((before > 0.15).all())
    assert bool((after > -0.01).all())
    assert bool((after < 0.3 * before).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_the_largest_entry_is_the_token_whatever_the_noise(dtype: torch.dtype, size: float) -> None:
    layer = ArgmaxDequantize(7, Affine(size, 3.0), event_dim=2).to(dtype)
    x = torch.randint(7, (50, 9, 8))
    pulled = layer.pull(tracked(x, event_dim=2))
    assert pulled.x.dtype == dtype
    assert pulled.ladj is not None
    assert pulled.ladj.shape == (50,)
    assert bool(torch.isfinite(pulled.ladj).all())
    assert torch.equal(layer.push(State(pulled.x)).x, x)
    first, second = pulled.x.topk(2, -1)[0].unbind(-1)
    assert bool((first > second).all()), "ties fall to the first entry"


def test_an_encoder_sees_units_and_context_and_single_tokens_are_points() -> None:
    seen = []

    def encoder(units: Tensor, context: Tensor | None) -> Tensor:
        seen.append((units, context))
        return units.flatten(-2)

    layer = ArgmaxDequantize(3, conditional(3, 2), encoder=encoder)
    label = torch.tensor([7.0])
    layer.pull(State(torch.tensor([[0, 2]])), label)
    assert seen[0][0].tolist() == [[[1, 0, 0], [0, 0, 1]]]
    assert seen[0][1] is label
    flow = Flow(Gaussian(4), ArgmaxDequantize(4, event_dim=0))
    assert flow.event_shape == ()
    assert flow.log_prob(torch.arange(4)).shape == (4,)
    wide = Flow(Gaussian(24), Chain(Reshape((24,), (2, 3, 4)), ArgmaxDequantize(4, event_dim=2)))
    assert wide.log_prob(torch.zeros(5, 2, 3, dtype=torch.int32)).shape == (5,)


@pytest.mark.unchecked
def test_a_flow_of_layers_gives_tokens_with_their_bounds() -> None:
    """Without type checks: `Flow` says that points are floating."""
    flow = known(3, ArgmaxDequantize(3))
    drawn, value = flow.sample_and_log_prob((6, 5))
    assert drawn.shape == (6, 5, 1)
    assert drawn.dtype == torch.int64
    assert value.shape == (6, 5)
    assert torch.equal(flow.push(flow.pull(drawn)), drawn)


def test_bad_settings_and_tokens_are_refused() -> None:
    with pytest.raises(DomainError, match="at least 2 and event_dim 0 or more, got vocabulary=1"):
        ArgmaxDequantize(1)
    with pytest.raises(DomainError, match=r"must be exact.*GaussianNoise.*'bound'"):
        ArgmaxDequantize(4, GaussianNoise(0.1))
    with pytest.raises(DomainError, match=r"1 axes and one of 4 numbers .* got \(4,\)"):
        Flow(Gaussian(4), ArgmaxDequantize(4))
    with pytest.raises(DomainError, match="forgets its noise"):
        ArgmaxDequantize(4).push(State(torch.rand(1, 2, 4), torch.zeros(1)))
    with pytest.raises(ShapeError, match="must end in shape"):
        ArgmaxDequantize(4).push(State(torch.rand(1, 2, 3)))
    flow = Flow(Gaussian((2, 4)), ArgmaxDequantize(4))
    with pytest.raises(DomainError, match=r"must be integers, got torch\.float64"):
        flow.log_prob(torch.zeros(3, 2))
    with pytest.raises(
        DomainError, match=r"between 0 and 3, got 4 at index \(1, 0\) \(1 of 4 tokens"
    ):
        flow.log_prob(torch.tensor([[0, 3], [4, 1]]))
    assert math.isfinite(flow.log_prob(torch.tensor([0, 3])).item())
