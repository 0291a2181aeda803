"""Laws of directions and angles against closed forms, SciPy, and each other."""

import math

import pytest
import torch
from scipy.special import ive
from scipy.stats import kstest, vonmises, vonmises_fisher
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from cflow.base import (
    Base,
    Components,
    ProjectedNormal,
    VonMises,
    VonMisesFisher,
    VonMisesFisherMixture,
    VonMisesMixture,
    WrappedNormal,
)
from cflow.base.polar import log_mean_decay
from cflow.errors import DomainError, ShapeError
from cflow.manifold import Sphere

DIMS = [1, 2, 3, 5, 20, 50]


def directions(n: int, count: int = 50) -> Tensor:
    return Sphere().projx(torch.randn(count, n + 1))


@pytest.mark.parametrize("n", DIMS)
def test_the_normaliser_is_bessels(n: int) -> None:
    """Value and slope for concentrations 0.5 to 10,000; SciPy's digits are the limit."""
    k = torch.tensor([0.5, 1.0, 7.0, 60.0, 900.0, 1e4], requires_grad=True)
    order = (n - 1) / 2
    bessel = torch.from_numpy(ive(order, k.detach().numpy()))
    expected = math.lgamma(order + 1) + order * (2 / k.detach()).log() + bessel.log()
    value = log_mean_decay(k, n)
    assert torch.allclose(value, expected, rtol=1e-12, atol=1e-12)
    (slope,) = torch.autograd.grad(value.sum(), k)
    ratio = torch.from_numpy(ive(order + 1, k.detach().numpy())) / bessel
    assert torch.allclose(slope, ratio - 1, rtol=1e-8)
    low = log_mean_decay(k.detach().float(), n)
    assert low.dtype == torch.float32
    assert torch.allclose(low.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [2, 3, 20])
def test_the_normaliser_is_smooth_at_zero(n: int) -> None:
    k = torch.tensor([0.0, 1e-9, 3.0], requires_grad=True)
    assert gradcheck(lambda k: log_mean_decay(k, n), k + 1e-3)
    assert gradgradcheck(lambda k: log_mean_decay(k, n), k + 1e-3)
    value = log_mean_decay(k, n)
    assert value[0].abs() < 1e-15
    (slope,) = torch.autograd.grad(value.sum(), k)
    assert slope[0].item() == pytest.approx(-1.0)  # the mean of 1 - cos theta over the sphere


@pytest.mark.parametrize("n", [1, 2, 4, 9])
@pytest.mark.parametrize("k", [0.3, 20.0, 2000.0])
def test_von_mises_fisher_is_scipys(n: int, k: float) -> None:
    """Densities; and heights of draws by Kolmogorov-Smirnov, false alarm 1e-6."""
    mean = directions(n, 1)[0]
    base = VonMisesFisher(n + 1, mean=mean, concentration=k)
    peer = vonmises_fisher(mean.numpy(), k)
    x = base.sample((4000,), generator=torch.Generator().manual_seed(0)).detach()
    assert Sphere().check_point(x, atol=1e-12)[0]
    expected = torch.from_numpy(peer.logpdf(x.numpy()))
    assert torch.allclose(base.log_prob(x), expected, atol=1e-8)
    theirs = torch.from_numpy(peer.rvs(4000, random_state=1))
    assert kstest((x @ mean).numpy(), (theirs @ mean).numpy()).pvalue > 1e-6


@pytest.mark.parametrize("n", [1, 2, 3, 10, 50])
def test_zero_concentration_is_the_uniform_law(n: int) -> None:
    """Draws by Kolmogorov-Smirnov against normalised Gaussians, false alarm 1e-6."""
    base, x = VonMisesFisher(n + 1, concentration=0.0), directions(n, 4000)
    even = -Sphere().log_volume((n + 1,))
    assert torch.allclose(base.log_prob(x), torch.full((4000,), even), rtol=0, atol=1e-14)
    draws = base.sample((4000,), generator=torch.Generator().manual_seed(0))
    for i in (0, 1):
        assert kstest(draws[:, i].detach().numpy(), x[:, i].numpy()).pvalue > 1e-6
    (base.log_prob(draws).sum() + draws.sum()).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in base.parameters())
    mixture = VonMisesFisherMixture(directions(n, 3), 0.0)
    assert torch.allclose(mixture.log_prob(x), torch.tensor(even), rtol=0, atol=1e-14)


def test_von_mises_is_scipys() -> None:
    """Densities; and draws by Kolmogorov-Smirnov, false alarm 1e-6 for each angle."""
    mean, k = torch.tensor([0.5, 3.0, 6.0]), torch.tensor([0.2, 5.0, 800.0])
    base = VonMises(3, mean=mean, concentration=k)
    x = base.sample((5000,), generator=torch.Generator().manual_seed(0)).detach()
    assert ((x >= 0) & (x < 2 * math.pi)).all()
    peer = vonmises(k.numpy(), loc=mean.numpy())
    assert torch.allclose(base.log_prob(x), torch.from_numpy(peer.logpdf(x.numpy())).sum(-1))
    for i in range(3):
        turn = torch.remainder(x[:, i] - mean[i] + math.pi, 2 * math.pi) - math.pi
        assert kstest(turn.numpy(), vonmises(float(k[i])).cdf).pvalue > 1e-6
    degrees = VonMises(3, mean=mean.rad2deg(), concentration=k, period=360.0)
    gain = 3 * math.log(math.pi / 180)
    assert torch.allclose(degrees.log_prob(x.rad2deg()), base.log_prob(x) + gain)


def test_von_mises_on_an_angle_is_von_mises_fisher_on_the_circle() -> None:
    angle = torch.linspace(0, 6, 20)
    x = torch.stack([angle.cos(), angle.sin()], -1)
    for k in (0.0, 0.7, 1e4):
        one = VonMises((), concentration=k).log_prob(angle)
        assert torch.allclose(one, VonMisesFisher(2, concentration=k).log_prob(x), atol=1e-8)


def normal(c: Tensor) -> tuple[Tensor, Tensor]:
    """Return the normal density, and the distribution function over it."""
    density = (-0.5 * c.square()).exp() / math.sqrt(2 * math.pi)
    return density, torch.special.ndtr(c) / density


@pytest.mark.parametrize("length", [0.0, 0.5, 3.0, 8.0])
def test_the_projected_normal_is_its_closed_form(length: float) -> None:
    for n in (1, 2):
        mean = length * directions(n, 1)[0]
        x = directions(n)
        c = x @ mean
        _, mills = normal(c)
        radial = 1 + c * mills if n == 1 else c + (1 + c.square()) * mills
        expected = radial.log() - 0.5 * length**2 - 0.5 * (n + 1) * math.log(2 * math.pi)
        got = ProjectedNormal(n + 1, mean=mean).log_prob(x)
        near = c > -4  # beyond, the closed form cancels
        assert torch.allclose(got[near], expected[near], atol=1e-8)
        assert torch.isfinite(got).all()


@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_the_projected_normal_without_mean_is_uniform(n: int) -> None:
    even = torch.full((50,), -Sphere().log_volume((n + 1,)))
    assert torch.allclose(ProjectedNormal(n + 1).log_prob(directions(n)), even, atol=1e-12)


def test_the_projected_normal_has_the_gradient_of_its_mean() -> None:
    x, base = directions(2, 4), ProjectedNormal(3)

    def log_prob(mean: Tensor) -> Tensor:
        return torch.func.functional_call(base, {"mean": mean}, (x,))

    base.forward = base.log_prob  # what functional_call calls
    assert gradcheck(log_prob, torch.tensor([1.3, -0.4, 3.0], requires_grad=True))
    assert gradcheck(log_prob, torch.zeros(3, requires_grad=True))


def about(mean: Tensor) -> list[Base]:
    return [
        VonMisesFisher(3, mean=mean, concentration=5.0),
        ProjectedNormal(3, mean=2 * mean),
        WrappedNormal(Sphere(), 3, mean=mean, scale=0.7),
        VonMisesFisherMixture(mean[None], 30.0),
    ]


def test_a_turned_mean_is_a_turned_density() -> None:
    mean, turn = directions(2, 1)[0], torch.linalg.qr(torch.randn(3, 3)).Q
    x = directions(2)
    for base, other in zip(about(mean), about(turn @ mean), strict=True):
        assert torch.allclose(other.log_prob(x @ turn.T), base.log_prob(x), atol=1e-10)


@pytest.mark.parametrize("k", [1e2, 1e4])
def test_narrow_laws_keep_their_digits_in_float32(k: float) -> None:
    mean = directions(2, 1)[0]
    bases = [
        VonMisesFisher(3, mean=mean, concentration=k),
        VonMisesFisherMixture(mean[None], k),
        ProjectedNormal(3, mean=math.sqrt(k) * mean),
        WrappedNormal(Sphere(), 3, mean=mean, scale=k**-0.5),
    ]
    x = bases[0].sample((500,), generator=torch.Generator().manual_seed(0)).detach().float()
    for base in bases:
        exact = base.log_prob(x.double())
        assert (base.float().log_prob(x).double() - exact).abs().max() < 1e-3


@pytest.mark.parametrize("shared", [True, False])
def test_mixtures_of_caps_are_components_of_caps(shared: bool) -> None:
    means, k = directions(3, 7), torch.linspace(0.5, 40.0, 7)
    k = k[3] if shared else k
    logits = torch.randn(7)
    each = [
        VonMisesFisher(4, mean=m, concentration=float(one))
        for m, one in zip(means, k.expand(7), strict=True)
    ]
    mixture = VonMisesFisherMixture(means, k, logits=logits)
    x = directions(3).reshape(5, 10, 4)
    expected = Components(each, logits=logits).log_prob(x)
    assert torch.allclose(mixture.log_prob(x), expected, atol=1e-10)
    lonely = VonMisesFisherMixture(means, k, learned=False)
    assert not list(lonely.parameters())


@pytest.mark.parametrize("shape", [(), (2,), (7, 1), (7, 2)], ids=str)
def test_mixtures_of_angles_are_components_of_angles(shape: tuple[int, ...]) -> None:
    means, k = torch.rand(7, 2), 0.5 + 10 * torch.rand(shape)
    logits = torch.randn(7)
    each = [
        VonMises(2, mean=m, concentration=one, period=1.0)
        for m, one in zip(means, k.expand(7, 2), strict=True)
    ]
    mixture = VonMisesMixture(means, k, logits=logits, period=1.0)
    x = torch.rand(5, 10, 2)
    expected = Components(each, logits=logits).log_prob(x)
    assert torch.allclose(mixture.log_prob(x), expected, atol=1e-10)


def test_many_kernels_go_by_in_pieces() -> None:
    means, x = directions(2, 3000), directions(2, 400)  # more pairs than are summed at once
    whole = VonMisesFisherMixture(means, 200.0, learned=False).log_prob(x)
    pairs = 200.0 * (x @ means.T - 1)
    constant = math.log(200.0 / (2 * math.pi)) - math.log(3000)
    assert torch.allclose(whole, pairs.logsumexp(-1) + constant)


def test_bad_options_are_refused() -> None:
    with pytest.raises(DomainError, match=r"concentration must be finite and 0 or more, got -1"):
        VonMisesFisher(3, concentration=-1.0)
    with pytest.raises(
        ShapeError, match=r"VonMisesFisher: mean must have shape \(3,\), got \(2,\)"
    ):
        VonMisesFisher(3, mean=torch.ones(2))
    with pytest.raises(DomainError, match="must be finite and not zero, or it has no direction"):
        VonMisesFisher(3, mean=torch.zeros(3))
    with pytest.raises(ShapeError, match="a point is a vector"):
        VonMisesFisher(1)
    with pytest.raises(ShapeError, match="ProjectedNormal: mean must have shape"):
        ProjectedNormal(3, mean=torch.zeros(2))
    with pytest.raises(DomainError, match="period must be positive"):
        VonMises(2, period=0.0)
    with pytest.raises(ShapeError, match="means must have shape"):
        VonMisesFisherMixture(torch.zeros(0, 3), 1.0)
    with pytest.raises(ShapeError, match="concentration must be one number or 2"):
        VonMisesFisherMixture(torch.eye(3)[:2], torch.ones(3))
    with pytest.raises(ShapeError, match="concentration must broadcast to means"):
        VonMisesMixture(torch.zeros(4, 2), torch.ones(4))
    with pytest.raises(ShapeError, match=r"logits must have shape \(4,\)"):
        VonMisesMixture(torch.zeros(4, 2), 1.0, logits=torch.zeros(3))
