"""Averaged targets: Bayes' rule over the batch, and what it buys."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cflow.errors import DomainError
from cflow.field import (
    CosineSchedule,
    GaussianMixture,
    LinearSchedule,
    MixtureField,
    PathSchedule,
    PredictNoise,
    PredictScore,
    PredictX1,
    VPSchedule,
)
from cflow.matching import (
    AffinePath,
    BridgePath,
    ContextDropout,
    Coupling,
    IndependentCoupling,
    LinearPath,
    OTCoupling,
    PairedCoupling,
    Pairs,
    UniformTimes,
    regression,
)

INNER = UniformTimes(0.05, 0.95)
LAW = lambda: GaussianMixture(torch.tensor([[-1.5, 0.0], [1.0, 1.0]]), 0.4)
BASE = lambda: GaussianMixture(torch.zeros(1, 2))


class Weighted(Coupling):
    """Keeps rows together and gives them weights."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(
        self, x0, x1, context=None, *, source_context=None, weights=None, generator=None
    ) -> Pairs:
        rows = torch.arange(len(x1))
        return Pairs(rows, rows, self.weight)


def posterior(log_density: Callable[[int, int], Tensor], n: int) -> Tensor:
    return torch.tensor([[float(log_density(i, k)) for k in range(n)] for i in range(n)]).softmax(1)


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()], ids=repr)
def test_normal_sources_are_averaged_by_bayes_rule(schedule: PathSchedule, noise: float) -> None:
    n, x1 = 7, LAW().sample(7)
    path = AffinePath(schedule, noise=noise)
    t = torch.linspace(0.2, 0.8, n)
    asked = regression(path, IndependentCoupling(), x1, t=t, marginal=True)
    c = schedule(t)
    width = (c.sigma.square() + noise**2).sqrt()
    normal = lambda i, k: -0.5 * ((asked.x[i] - c.alpha[i] * x1[k]) / width[i]).square().sum()
    share = posterior(normal, n)
    back = asked.x[:, None] - c.alpha[:, None, None] * x1  # what is not the target's, (n, n, 2)
    x0 = (c.sigma / width.square())[:, None, None] * back
    velocity = c.d_alpha[:, None, None] * x1 + c.d_sigma[:, None, None] * x0
    assert torch.allclose(asked.target, (share[..., None] * velocity).sum(1))


def test_pairs_of_any_coupling_are_averaged_by_bayes_rule_with_their_weights() -> None:
    n, noise = 6, 0.5
    x0, x1, t = torch.randn(n, 2, 3), torch.randn(n, 2, 3), torch.linspace(0.0, 1.0, n)
    weight = torch.tensor([0.0, 0.5, 1.0, 1.0, 1.5, 2.0])
    path = AffinePath(LinearSchedule(), noise=noise)
    asked = regression(path, Weighted(weight), x1, x0=x0, t=t, marginal=True)
    assert torch.equal(asked.weight, weight)
    mean = lambda i, k: (1 - t[i]) * x0[k] + t[i] * x1[k]
    normal = lambda i, k: weight[k].log() - 0.5 * ((asked.x[i] - mean(i, k)) / noise).square().sum()
    wanted = torch.einsum("ik,k...->i...", posterior(normal, n), x1 - x0)
    assert torch.allclose(asked.target, wanted)


@pytest.mark.parametrize("schedule", [LinearSchedule(), VPSchedule()], ids=repr)
def test_the_error_against_the_exact_velocity_shrinks_with_the_batch(
    schedule: PathSchedule,
) -> None:
    """Mean squared errors over 2048 rows, the plain target's first."""
    law, count = MixtureField(BASE(), LAW(), schedule), 2048
    errors = []
    for size in (0, 32, 256, 2048):
        total = []
        for _ in range(count // (size or count)):
            asked = regression(
                AffinePath(schedule),
                IndependentCoupling(),
                LAW().sample(size or count),
                times=INNER,
                marginal=size > 0,
            )
            total.append((asked.target - law(asked.t, asked.x)).square().sum(1))
        errors.append(torch.cat(total).mean())
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.4 * errors[1]
    assert errors[3] < 0.4 * errors[2]


@pytest.mark.parametrize("prediction", [PredictX1(), PredictNoise(), PredictScore()], ids=repr)
def test_every_prediction_is_averaged(prediction: PredictX1) -> None:
    law = MixtureField(BASE(), LAW(), LinearSchedule())
    asked = regression(
        LinearPath(),
        IndependentCoupling(),
        LAW().sample(2000),
        times=UniformTimes(0.2, 0.8),
        prediction=prediction,
        marginal=True,
    )
    wanted = prediction.value(asked.t, *law.ends(asked.t, asked.x), LinearSchedule())
    assert (asked.target - wanted).square().mean() < 0.02 * wanted.square().mean()


def test_blurred_paths_under_optimal_transport_lose_noise() -> None:
    """Against the fitted mean of many plain targets: here the pairs' noise is what is averaged."""
    path = AffinePath(LinearSchedule(), noise=0.5)
    x0, x1 = torch.randn(1000, 1), 3 + torch.randn(1000, 1)
    draw = lambda marginal: regression(
        path,
        IndependentCoupling(),
        x1,
        x0=x0,
        t=torch.full((1000,), 0.5),
        marginal=marginal,
        generator=torch.Generator().manual_seed(0),
    )
    plain, averaged = draw(False), draw(True)
    assert torch.equal(plain.x, averaged.x)
    exact = torch.full_like(plain.x, 3.0)  # equal variances: at half time x says nothing of x1 - x0
    assert (averaged.target - exact).square().mean() < 0.1
    assert (plain.target - exact).square().mean() > 1.5


def test_contexts_keep_their_own_targets_and_a_lost_one_meets_all() -> None:
    """Two classes far apart at t near 0, where a point says nothing of its class."""
    n = 400
    labels = torch.arange(n) % 2
    x1 = 10.0 * labels[:, None] + torch.randn(n, 1)
    t = torch.full((n,), 1e-3)
    draw = lambda context, dropout=None: regression(
        LinearPath(),
        IndependentCoupling(),
        x1,
        context=context,
        t=t,
        prediction=PredictX1(),
        dropout=dropout,
        marginal=True,
    )
    asked = draw(labels)
    assert torch.allclose(asked.target[:, 0], 10.0 * labels, atol=0.5)
    assert torch.allclose(draw(None).target, torch.tensor(5.0), atol=0.5)
    dropped = draw(labels, ContextDropout(0.5, null=2))
    lost = dropped.context == 2
    assert 100 < lost.sum() < 300
    assert torch.allclose(dropped.target[lost], torch.tensor(5.0), atol=0.5)
    assert torch.allclose(dropped.target[~lost, 0], 10.0 * labels[~lost], atol=0.5)
    vectors = draw(torch.randn(n, 3))  # no two alike: each keeps its own target
    assert torch.allclose(vectors.target, x1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_data_end_gives_the_own_pair_and_is_finite(dtype: torch.dtype) -> None:
    x1 = torch.randn(8, 2, dtype=dtype)
    x1[3] = x1[5]  # a point that occurs twice
    for t in (0.0, 1 - 1e-7, 1.0):
        times = torch.full((8,), t, dtype=dtype)
        asked = regression(LinearPath(), IndependentCoupling(), x1, t=times, marginal=True)
        assert asked.target.isfinite().all()
        assert asked.target.abs().max() < 20
        assert asked.target.dtype == dtype
    plain = regression(LinearPath(), IndependentCoupling(), x1, t=times)
    assert torch.allclose(asked.x, x1)
    assert (asked.target - plain.target).shape == (8, 2)


@pytest.mark.parametrize(
    ("path", "coupling", "x0"),
    [
        (LinearPath(), OTCoupling(), None),
        (LinearPath(), IndependentCoupling(), torch.zeros(4, 2)),
        (AffinePath(CosineSchedule()), PairedCoupling(), torch.zeros(4, 2)),
    ],
    ids=["OT", "own sources", "pairs"],
)
def test_unknown_laws_are_refused(path: LinearPath, coupling: Coupling, x0: Tensor | None) -> None:
    x0 = None if x0 is None else x0.double()
    with pytest.raises(DomainError, match=r"averaged targets .* need normal sources"):
        regression(path, coupling, torch.zeros(4, 2), x0=x0, marginal=True)
    with pytest.raises(DomainError, match="need a path with a schedule, got BridgePath"):
        regression(BridgePath(1.0), coupling, torch.zeros(4, 2), x0=x0, marginal=True)
