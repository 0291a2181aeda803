"""Log-determinants by chance: unbiased in value and gradient, honest errors, constant memory.

Every z-test here uses 6 standard errors (8 where many numbers are compared at once), which errs
once in 5e8 runs on normal means; the seed is fixed, so a pass stays a pass.
"""

import math
from typing import Literal

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from cflow.errors import DomainError
from cflow.nets import LipschitzConvNet, LipschitzMLP
from cflow.testing import peak_bytes
from cflow.transport import Cutoff, ExactLogDet, Geometric, LogDet, Poisson, RussianRoulette

ROULETTES = {
    "geometric": RussianRoulette(Geometric(0.4), exact_terms=1),
    "geometric, no exact terms": RussianRoulette(Geometric(0.4), exact_terms=0),
    "poisson": RussianRoulette(Poisson(2.0), exact_terms=2),
    "poisson, no exact terms": RussianRoulette(Poisson(3.0), exact_terms=0),
    "series": RussianRoulette(Geometric(0.4), exact_terms=1, gradient="series"),
    "two gaussian probes": RussianRoulette(
        Geometric(0.4), exact_terms=2, probes=2, noise="gaussian"
    ),
}
roulettes = pytest.mark.parametrize("name", ROULETTES)


class Bend(nn.Module):
    """g = 0.6 tanh(tanh(x A') B') + b with A and B near the identity: of traces far from zero."""

    def __init__(self) -> None:
        super().__init__()
        first, second = (torch.eye(3) + 0.4 * torch.randn(3, 3) for _ in range(2))
        self.first = nn.Parameter(first / torch.linalg.matrix_norm(first, 2))
        self.second = nn.Parameter(second / torch.linalg.matrix_norm(second, 2))
        self.shift = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return 0.6 * torch.tanh(torch.tanh(x @ self.first.T) @ self.second.T) + self.shift


def evaluate(
    logdet: LogDet, net: nn.Module, x: Tensor, seed: int = 0, batch_dim: int = 1
) -> tuple[Tensor, Tensor]:
    noise = logdet.draw(x, batch_dim, torch.Generator().manual_seed(seed))
    return logdet(lambda z: net(z), x, batch_dim, noise)


@roulettes
def test_the_value_is_unbiased(name: str) -> None:
    net, points = Bend(), torch.randn(4, 3) / 2
    with torch.no_grad():
        value, exact = evaluate(ExactLogDet(), net, points)
        many = points.repeat(20_000, 1)
        same, draws = evaluate(ROULETTES[name], net, many)
    assert torch.allclose(same[:4], value, rtol=0, atol=1e-12)
    draws = draws.reshape(-1, 4)
    error = draws.std(0) / math.sqrt(len(draws))
    assert bool(((draws.mean(0) - exact).abs() < 6 * error).all())
    assert bool((error < 0.02).all()), "the test is too weak to see a bias"
    assert exact.abs().min() > 0.05


@roulettes
def test_the_gradient_is_unbiased(name: str) -> None:
    net, points = Bend(), torch.full((1, 3), 0.3, requires_grad=True)
    parameters = (points, *net.parameters())
    expected = torch.autograd.grad(
        evaluate(ExactLogDet(), net, points)[1].sum(), parameters, allow_unused=True
    )
    groups = []
    for seed in range(40):
        draws = evaluate(ROULETTES[name], net, points.expand(500, 3), seed)[1].mean()
        groups.append(torch.autograd.grad(draws, parameters, allow_unused=True))
    compared = 0
    for k, exact in enumerate(expected):
        if exact is None:  # the last bias
            assert groups[0][k] is None or not bool(groups[0][k].any())
            continue
        means = torch.stack([group[k] for group in groups])
        error = means.std(0) / math.sqrt(len(means))
        assert bool(((means.mean(0) - exact).abs() <= 8 * error + 1e-12).all())  # 40 groups: t
        assert error.max() < 0.1 * expected[0].abs().max() + 0.1
        compared += exact.numel()
    assert compared > 20


def test_neumann_and_series_share_their_value() -> None:
    net, x = Bend(), torch.randn(6, 3)
    neumann = evaluate(RussianRoulette(), net, x)[1]
    series = evaluate(RussianRoulette(gradient="series"), net, x)[1]
    assert torch.allclose(neumann, series, rtol=0, atol=1e-13)
    with torch.no_grad():
        assert torch.equal(evaluate(RussianRoulette(), net, x)[1], neumann)


def test_a_wrong_weight_is_seen() -> None:
    """Plant the fault of an unweighted cut; the z-test above has to fail on it."""

    class Unweighted(Geometric):
        def survival(self, k: int) -> float:
            return 1.0

    net, points = Bend(), torch.randn(4, 3) / 2
    with torch.no_grad():
        exact = evaluate(ExactLogDet(), net, points)[1]
        faulty = RussianRoulette(Unweighted(0.4), exact_terms=0)
        draws = evaluate(faulty, net, points.repeat(20_000, 1))[1].reshape(-1, 4)
    error = draws.std(0) / math.sqrt(len(draws))
    assert bool(((draws.mean(0) - exact).abs() > 6 * error).any())


def test_samples_draw_noise_of_their_own_and_one_seed_gives_one_answer() -> None:
    net, x = Bend(), torch.randn(1, 3).expand(64, 3)
    first, again = (evaluate(RussianRoulette(), net, x, seed)[1] for seed in (1, 1))
    assert torch.equal(first, again)
    assert len(first.unique()) > 8
    noise = RussianRoulette().draw(x, 1, torch.Generator().manual_seed(1))
    assert noise is not None
    assert len(noise.terms.unique()) > 2
    assert noise.longest == noise.terms.max()


def test_with_given_noise_a_sample_does_not_depend_on_its_batch_mates() -> None:
    net, x, roulette = Bend(), torch.randn(5, 3), RussianRoulette()
    noise = roulette.draw(x, 1, torch.Generator().manual_seed(0))
    assert noise is not None
    _, together = roulette(net, x, 1, noise)
    for k in range(5):
        own = noise._replace(
            probes=noise.probes[k : k + 1],
            terms=noise.terms[k : k + 1],
            longest=int(noise.terms[k]),
        )
        assert torch.allclose(roulette(net, x[k : k + 1], 1, own)[1], together[k])


@pytest.mark.parametrize("batch", [(), (0,), (2, 3)], ids=str)
def test_any_number_of_batch_axes(batch: tuple[int, ...]) -> None:
    net = LipschitzConvNet(1, hidden_channels=(3,))
    x = torch.randn(*batch, 1, 2, 2)
    for logdet in (ExactLogDet(), RussianRoulette(), RussianRoulette(probes=3)):
        value, ladj = evaluate(logdet, net, x, batch_dim=len(batch))
        assert value.shape == x.shape
        assert ladj.shape == batch


def memory(gradient: Literal["neumann", "series"], terms: int) -> int:
    torch.manual_seed(0)
    net, x = LipschitzMLP(3, hidden_features=(64, 64)), torch.randn(50, 3, requires_grad=True)
    roulette = RussianRoulette(Geometric(0.999999), exact_terms=terms - 1, gradient=gradient)

    def run() -> None:
        evaluate(roulette, net, x)[1].sum().backward()

    return peak_bytes(run)


@pytest.mark.unchecked
def test_the_neumann_gradient_takes_the_memory_of_one_product() -> None:
    assert memory("neumann", 40) <= 1.1 * memory("neumann", 10)
    assert memory("series", 40) > 2 * memory("series", 10)


@pytest.mark.parametrize(
    ("law", "reference"),
    [(Geometric(0.3), stats.geom(0.3)), (Poisson(2.5), stats.poisson(2.5))],
    ids=["geometric", "poisson"],
)
def test_cutoffs_follow_their_laws(law: Cutoff, reference: stats.rv_discrete) -> None:
    counts = law.draw(torch.empty(200_000), torch.Generator().manual_seed(0))
    for k in range(1, 30):
        expected = float(reference.sf(k - 1))
        assert law.survival(k) == pytest.approx(expected, rel=1e-10)
        error = math.sqrt(expected * (1 - expected) / len(counts))
        assert abs(float((counts >= k).double().mean()) - expected) <= 6 * error + 1e-5


def test_bad_settings_are_refused_in_words() -> None:
    with pytest.raises(DomainError, match=r"Geometric: p must lie in \(0, 1\), got 1.0"):
        Geometric(1.0)
    with pytest.raises(DomainError, match="Poisson: rate must be positive"):
        Poisson(0.0)
    with pytest.raises(DomainError, match="0 exact terms and 1 probe at least"):
        RussianRoulette(probes=0)
