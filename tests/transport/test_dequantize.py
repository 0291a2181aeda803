"""Dequantisation on discrete laws that are known: the bound, its equality, and the account."""

import math

import pytest
import torch
from torch import Tensor

from cflow import Flow, State, tracked
from cflow.base import Gaussian
from cflow.errors import DomainError
from cflow.metrics import bits_per_dim
from cflow.nets import MLP
from cflow.transport import (
    Affine,
    Chain,
    CouplingLayer,
    Dequantize,
    GaussianNoise,
    Inverse,
    Layer,
    Logit,
    Standardize,
    Transport,
    VariationalDequantize,
)

SCALE, SHIFT = 1.3, 0.4
ALPHA = 0.05
normal = torch.distributions.Normal(0.0, 1.0)


def edges(levels: int, alpha: float) -> Tensor:
    """Return where the edges of the cells lie on the base side of the known flow."""
    s = alpha + (1 - 2 * alpha) * torch.arange(levels + 1.0) / levels
    return (torch.logit(s) - SHIFT) / SCALE


def law(levels: int, alpha: float) -> Tensor:
    """Return the probability of each level under the known flow, one coordinate."""
    return normal.cdf(edges(levels, alpha)).diff()


class PerfectNoise(Layer):
    """Map normal numbers to the logit of the noise, distributed as the known flow has it in x."""

    def __init__(self, levels: int, alpha: float) -> None:
        super().__init__(event_dim=0)
        self.levels, self.alpha = levels, alpha

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        with torch.enable_grad():
            eps = x.detach().requires_grad_()
            y = self._map(eps, context)
            (slope,) = torch.autograd.grad(y.sum(), eps)
        return y.detach(), slope.log() if tracked else None

    def _map(self, eps: Tensor, context: Tensor | None) -> Tensor:
        assert context is not None
        level, low, high = self._cell(context)
        z = normal.icdf(low + normal.cdf(eps) * (high - low))
        s = torch.sigmoid(z * SCALE + SHIFT)
        u = ((s - self.alpha) / (1 - 2 * self.alpha)) * self.levels - level
        return torch.logit(u)

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        assert context is not None
        level, low, high = self._cell(context)
        s = self.alpha + (1 - 2 * self.alpha) * (torch.sigmoid(y) + level) / self.levels
        z = (torch.logit(s) - SHIFT) / SCALE
        eps = normal.icdf((normal.cdf(z) - low) / (high - low))
        slope = self._push(eps, context, tracked=tracked)[1]
        return eps, None if slope is None else -slope

    def _cell(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the integer that the context stands for, and the mass below and above its cell."""
        level = ((context + 1) * self.levels / 2 - 0.5).round()  # as the layer scales integers
        ends = normal.cdf(edges(self.levels, self.alpha))
        return level, ends[level.long()], ends[level.long() + 1]


def test_the_perfect_noise_goes_both_ways() -> None:
    """What the tests below take for perfect is a layer: its pull undoes its push."""
    noise = PerfectNoise(3, 0.05)
    eps, x = torch.randn(9, 1), torch.tensor([-2.0, 0.0, 2.0]).repeat(3)[:, None] / 3
    there = noise.push(tracked(eps), x)
    back = noise.pull(there, x)
    assert torch.allclose(back.x, eps, rtol=0, atol=1e-9)
    assert back.ladj is not None
    assert torch.allclose(back.ladj, torch.zeros(9), rtol=0, atol=1e-9)


def known(data_end: Transport, features: int, alpha: float) -> Flow:
    """Build a flow whose continuous density is known, by way of a fitted Standardize."""
    layer = Standardize((features,))
    layer.fit(SHIFT + SCALE * torch.tensor([[-1.0], [1.0]]).expand(2, features) / 2**0.5)
    return Flow(Gaussian(features), Chain(layer, Inverse(Logit(alpha)), data_end))


def every_point(levels: int, features: int) -> Tensor:
    return torch.cartesian_prod(*[torch.arange(levels)] * features).reshape(-1, features)


@pytest.mark.parametrize(("levels", "features"), [(2, 1), (3, 2)])
@pytest.mark.parametrize("alpha", [0.0, ALPHA])
def test_perfect_noise_makes_the_bound_an_equality(
    levels: int, features: int, alpha: float
) -> None:
    flow = known(VariationalDequantize(PerfectNoise(levels, alpha), levels), features, alpha)
    x = every_point(levels, features)
    truth = law(levels, alpha).log()[x].sum(-1)
    for seed in range(3):
        value = flow.log_prob(x, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(value, truth, atol=1e-7, rtol=0)
    bits = bits_per_dim(flow.log_prob(x), flow.event_shape)
    torch.testing.assert_close(bits, -truth / (features * math.log(2)), atol=1e-7, rtol=0)
    if alpha == 0:
        assert truth.exp().sum().item() == pytest.approx(1.0)


def trapezoid(features: int, reach: float = 24.0, step: float = 0.2) -> tuple[Tensor, Tensor]:
    """Return nodes and weights for the mean over standard normal numbers.

    The ratio exp(l) grows like the inverse of their density, so Gauss-Hermite would not do.
    """
    z = torch.arange(-reach, reach + step / 2, step)
    w = step * normal.log_prob(z).exp()
    grid = torch.cartesian_prod(*[z] * features).reshape(-1, features)
    weights = torch.cartesian_prod(*[w] * features).reshape(-1, features).prod(-1)
    return grid, weights


def log_values(flow: Flow, layer: VariationalDequantize, noise: Tensor, x: Tensor) -> Tensor:
    """Return what log_prob gives for each chosen noise and point, `(choices, points)`."""
    y = x.expand(len(noise), *x.shape)
    u, ladj = layer._pull(y, noise[:, None].expand(*y.shape), None, tracked=True)
    rest = Flow(flow.base, flow.transport[:-1])  # type: ignore[index]
    assert ladj is not None
    return rest.log_prob(u) + ladj


@pytest.mark.parametrize("features", [1, 2])
def test_any_noise_gives_a_bound_and_its_exponential_averages_to_the_probability(
    features: int,
) -> None:
    """With enough nodes both expectations are exact: the sign of log q and all constants count."""
    levels = 3
    flags = [True, False][:features]
    part = CouplingLayer(flags, MLP(features - 1, 2, context=features, hidden_features=(4,)))
    layer = VariationalDequantize(part, levels)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    flow = known(layer, features, ALPHA)
    grid, weights = trapezoid(features)
    x = every_point(levels, features)
    with torch.no_grad():
        values = log_values(flow, layer, grid, x)
    truth = law(levels, ALPHA).log()[x].sum(-1)
    bound = (weights[:, None] * values).sum(0)
    assert bool((bound < truth).all())
    assert bound.exp().sum().item() < 1
    mean = (weights[:, None] * values.exp()).sum(0)
    torch.testing.assert_close(mean, truth.exp(), atol=1e-4, rtol=0)


def test_uniform_noise_averages_to_the_probability_too() -> None:
    levels, n = 4, 4000
    flow = known(Dequantize(levels), 1, ALPHA)
    u = (torch.arange(n) + 0.5) / n
    y = (torch.arange(levels)[:, None] + u).reshape(-1, 1) / levels  # midpoints of thin cells
    rest = Flow(flow.base, flow.transport[:-1])  # type: ignore[index]
    values = (rest.log_prob(y) - math.log(levels)).reshape(levels, n)
    torch.testing.assert_close(values.exp().mean(1), law(levels, ALPHA), atol=1e-6, rtol=0)
    assert bool((values.mean(1) < law(levels, ALPHA).log()).all())


def test_learned_noise_tightens_the_bound() -> None:
    levels, features = 3, 2
    x = every_point(levels, features)
    part = CouplingLayer([True, False], MLP(1, 2, context=2, hidden_features=(16,)))
    other = CouplingLayer([False, True], MLP(1, 2, context=2, hidden_features=(16,)))
    flow = known(VariationalDequantize(Chain(part, other), levels), features, 0.0)
    gap = lambda n: (
        law(levels, 0.0).log()[x].sum(-1) - flow.log_prob(x.expand(n, *x.shape)).mean(0)
    ).mean()
    optimizer = torch.optim.Adam(part.parameters(), lr=1e-2)
    optimizer.add_param_group({"params": list(other.parameters())})
    with torch.no_grad():
        before = gap(2000).item()
    for _ in range(150):
        optimizer.zero_grad()
        gap(8).backward()
        optimizer.step()
    with torch.no_grad():
        after = gap(2000).item()
    uniform = known(Dequantize(levels), features, 0.0)
    with torch.no_grad():
        flat = uniform.log_prob(x.expand(2000, *x.shape)).mean(0)
    assert 0 < after < 0.3 * before
    assert after < (law(levels, 0.0).log()[x].sum(-1) - flat).mean().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_integers_come_back_and_the_dtype_follows(dtype: torch.dtype) -> None:
    for layer in (Dequantize(256), VariationalDequantize(Chain(), 256, event_dim=3)):
        layer.to(dtype)
        x = torch.randint(256, (20, 1, 8, 8))
        pulled = layer.pull(State(x, ladj=torch.zeros(20)))
        assert pulled.x.dtype == dtype
        assert pulled.ladj is not None
        assert pulled.ladj.shape == (20,)
        assert torch.equal(layer.push(State(pulled.x)).x.long(), x)
        assert pulled.x.max() < 1


def test_the_highest_level_stays_below_one_in_float32() -> None:
    """255.99999 rounds to 256 in float32, and the logit of 1 is infinite."""
    layer = Dequantize(256).float()
    top = torch.full((1,), 1 - 2.0**-24, dtype=torch.float32)
    u, _ = layer._pull(torch.tensor([255]), top, None, tracked=False)
    assert u.item() < 1


def test_an_encoder_sees_image_and_context() -> None:
    seen = []

    def encoder(image: Tensor, context: Tensor | None) -> Tensor:
        seen.append((image, context))
        return image

    layer = VariationalDequantize(Chain(), 4, encoder=encoder)
    label = torch.tensor([7.0])
    layer.pull(State(torch.tensor([[0, 3]])), label)
    assert seen[0][0].tolist() == [[-0.75, 0.75]]
    assert seen[0][1] is label


def test_bad_settings_are_refused() -> None:
    with pytest.raises(DomainError, match="at least 2, got 1"):
        VariationalDequantize(Chain(), 1)
    with pytest.raises(DomainError, match=r"must be exact.*GaussianNoise.*'bound'"):
        VariationalDequantize(GaussianNoise(0.1), 4)
    with pytest.raises(DomainError, match="forgets its noise"):
        VariationalDequantize(Chain(Affine()), 4).push(State(torch.rand(1, 2), torch.zeros(1)))
