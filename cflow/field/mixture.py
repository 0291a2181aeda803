"""The exact velocity between two Gaussian mixtures: the oracle that everything can be held against.

With x0 and x1 independent, x_t = alpha x1 + sigma x0 given the components (k, l) is normal,

    m = alpha m1_l + sigma m0_k,    S = alpha^2 S1_l + sigma^2 S0_k,
    E[x1 | x, k, l] = m1_l + alpha S1_l S^-1 (x - m),
    E[x0 | x, k, l] = m0_k + sigma S0_k S^-1 (x - m),

and the velocity of the marginal law is alpha' E[x1 | x] + sigma' E[x0 | x], the expectations being
weighted by the posterior of (k, l). Density, score and divergence are closed forms too.
Source: Lipman et al. (2023), arXiv 2210.02747, theorem 1; Albergo et al. (2023), Stochastic
interpolants, arXiv 2303.08797, appendix A.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from cflow.errors import DomainError, ShapeError, expect_trailing
from cflow.field.field import AnalyticField
from cflow.field.prediction import Ends
from cflow.field.schedule import LinearSchedule, PathSchedule
from cflow.typing import Batch, Points, Times

__all__ = ["GaussianMixture", "MixtureField"]


class GaussianMixture(nn.Module):
    """A mixture of normal laws with full covariances.

    Args:
        means: `(components, features)`.
        covariances: `(components, features, features)`, or standard deviations of round components,
            a number or `(components,)`.
        weights: Masses of the components, which sum to one; equal by default.

    Raises:
        ShapeError: Shapes disagree.
        DomainError: The weights are negative or do not sum to one, or a covariance is not positive.

    Example:
        >>> law = GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.5)
        >>> law.log_prob(torch.zeros(1, 1))
        tensor([-2.2258])
    """

    def __init__(
        self, means: Tensor, covariances: Tensor | float = 1.0, weights: Tensor | None = None
    ) -> None:
        super().__init__()
        if means.dim() != 2:
            raise ShapeError(
                f"GaussianMixture: means must be (components, features), got {tuple(means.shape)}"
            )
        k, d = means.shape
        spread = torch.as_tensor(covariances, dtype=means.dtype, device=means.device)
        if spread.dim() < 2:
            unit = torch.eye(d, dtype=means.dtype, device=means.device)
            spread = spread.square().expand(k)[:, None, None] * unit
        weights = means.new_full((k,), 1 / k) if weights is None else weights
        if spread.shape != (k, d, d) or weights.shape != (k,):
            raise ShapeError(
                f"GaussianMixture: {k} components of {d} features need covariances {(k, d, d)} and "
                f"weights {(k,)}, got {tuple(spread.shape)} and {tuple(weights.shape)}"
            )
        if bool((weights < 0).any()) or abs(weights.sum().item() - 1) > 1e-5:
            raise DomainError(
                f"GaussianMixture: weights must be 0 or more and sum to one, got a sum of "
                f"{weights.sum().item():.6g}; divide them by their sum"
            )
        factors, failed = torch.linalg.cholesky_ex(spread)
        if bool(failed.any()):
            raise DomainError(
                "GaussianMixture: every covariance must be symmetric and positive definite; number "
                f"{int(failed.nonzero()[0])} is not"
            )
        self.means: Tensor
        self.covariances: Tensor
        self.weights: Tensor
        self.factors: Tensor
        self.register_buffer("means", means)
        self.register_buffer("covariances", spread)
        self.register_buffer("weights", weights)
        self.register_buffer("factors", factors)

    def sample(self, n: int, *, generator: Generator | None = None) -> Points:
        """Draw points, `(n, features)`."""
        pick = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(
            (n, self.means.shape[1], 1),
            dtype=self.means.dtype,
            device=self.means.device,
            generator=generator,
        )
        return self.means[pick] + (self.factors[pick] @ noise)[..., 0]

    def log_prob(self, x: Points) -> Batch:
        """Return log densities in nats, `(*batch,)`, of points `(*batch, features)`."""
        expect_trailing("GaussianMixture.log_prob", "x", x, self.means.shape[1:])
        away = x[..., None, :] - self.means
        each = self.weights.log() + _log_normal(away, self.factors)[0]
        return torch.logsumexp(each, -1)

    @property
    def mean(self) -> Tensor:
        """The mean, `(features,)`."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """The covariance, `(features, features)`."""
        away = self.means - self.mean
        spread = self.covariances + away[:, :, None] * away[:, None, :]
        return (self.weights[:, None, None] * spread).sum(0)


class _Posterior(NamedTuple):
    """Hold what the pairs of components say at a point; pairs are the axis before the features."""

    weight: Tensor  # (*batch, pairs)
    score: Tensor  # of each pair, (*batch, pairs, features)
    x0: Tensor
    x1: Tensor
    precision: Tensor  # (*batch, pairs, features, features)
    log_prob: Tensor


class MixtureField(AnalyticField):
    """The exact marginal velocity of an affine path between two independent Gaussian mixtures.

    Args:
        source: The law at t = 0.
        target: The law at t = 1.
        schedule: The path.

    Raises:
        ShapeError: The laws have different numbers of features.

    Example:
        >>> left, right = GaussianMixture(torch.zeros(1, 1)), GaussianMixture(torch.ones(1, 1))
        >>> field = MixtureField(left, right)
        >>> field(torch.zeros(1), torch.zeros(1, 1))
        tensor([[1.]])
    """

    def __init__(
        self,
        source: GaussianMixture,
        target: GaussianMixture,
        schedule: PathSchedule | None = None,
    ) -> None:
        super().__init__()
        if source.means.shape[1] != target.means.shape[1]:
            raise ShapeError(
                "MixtureField: source and target need one number of features, got "
                f"{source.means.shape[1]} and {target.means.shape[1]}"
            )
        self.source = source
        self.target = target
        self.schedule = LinearSchedule() if schedule is None else schedule

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        return self._velocity(t, x, self.ends(t, x))

    def with_divergence(
        self, t: Times, x: Points, context: Tensor | None = None
    ) -> tuple[Points, Batch]:
        p = self._posterior(t, x)
        c = self.schedule(t)
        v = self._velocity(t, x, _mean_ends(p))
        pull = (p.score - _average(p.weight, p.score)[..., None, :]) * p.weight[..., None]
        pairs = len(self.source.weights), len(self.target.weights)
        # The gradient of a posterior weight w is w (score of the pair - mean score).
        across = c.d_alpha * (pull * p.x1).sum((-1, -2)) + c.d_sigma * (pull * p.x0).sum((-1, -2))
        blocks = p.precision.unflatten(-3, pairs)
        trace0 = torch.einsum("...klij,kji->...kl", blocks, self.source.covariances).flatten(-2)
        trace1 = torch.einsum("...klij,lji->...kl", blocks, self.target.covariances).flatten(-2)
        inner = (p.weight * trace1).sum(-1) * c.alpha * c.d_alpha
        return v, across + inner + (p.weight * trace0).sum(-1) * c.sigma * c.d_sigma

    def ends(self, t: Times, x: Points) -> Ends:
        """Return E[x0 | x] and E[x1 | x] at time t, of the shape of x."""
        return _mean_ends(self._posterior(t, x))

    def score(self, t: Times, x: Points) -> Points:
        """Return grad log p_t(x), of the shape of x."""
        p = self._posterior(t, x)
        return _average(p.weight, p.score)

    def log_prob(self, t: Times, x: Points) -> Batch:
        """Return log p_t(x) in nats, `(*batch,)`."""
        return self._posterior(t, x).log_prob

    def sample(self, t: Times, *, generator: Generator | None = None) -> Points:
        """Draw one point of the marginal law at each time, `(n, features)` for t `(n,)`."""
        x0 = self.source.sample(len(t), generator=generator)
        x1 = self.target.sample(len(t), generator=generator)
        c = self.schedule(t).over(x1)
        return c.alpha * x1 + c.sigma * x0

    def _velocity(self, t: Tensor, x: Tensor, ends: Ends) -> Tensor:
        c = self.schedule(t).over(x)
        return c.d_alpha * ends.x1 + c.d_sigma * ends.x0

    def _posterior(self, t: Tensor, x: Tensor) -> _Posterior:
        expect_trailing("MixtureField", "x", x, self.source.means.shape[1:])
        a, b = (
            part.reshape(*part.shape, 1, 1, 1) for part in self.schedule(t)[:2]
        )  # against (pairs of components, features)
        m0, m1 = self.source.means[:, None], self.target.means[None]
        s0, s1 = self.source.covariances[:, None], self.target.covariances[None]
        away = (x[..., None, None, :] - (a * m1 + b * m0)).flatten(-3, -2)
        spread = a[..., None].square() * s1 + b[..., None].square() * s0
        log_normal, precision = _log_normal(away, torch.linalg.cholesky(spread.flatten(-4, -3)))
        log_weight = (self.source.weights.log()[:, None] + self.target.weights.log()).flatten()
        joint = log_weight + log_normal
        whitened = (precision @ away[..., None])[..., 0]
        pairs = len(self.source.weights), len(self.target.weights)
        blocks = whitened.unflatten(-2, pairs)
        x0 = m0 + b * torch.einsum("kij,...klj->...kli", self.source.covariances, blocks)
        x1 = m1 + a * torch.einsum("lij,...klj->...kli", self.target.covariances, blocks)
        flat = (x0.flatten(-3, -2), x1.flatten(-3, -2))
        total = torch.logsumexp(joint, -1)
        return _Posterior(joint.softmax(-1), -whitened, *flat, precision, total)


def _log_normal(away: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Return log N(away; 0, L L') over the last axis, and the precisions."""
    precision = torch.cholesky_inverse(factors)
    square = (away * (precision @ away[..., None])[..., 0]).sum(-1)
    half_log_det = factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    d = away.shape[-1]
    return -0.5 * square - half_log_det - 0.5 * d * math.log(2 * math.pi), precision


def _average(weight: Tensor, values: Tensor) -> Tensor:
    return (weight[..., None] * values).sum(-2)


def _mean_ends(p: _Posterior) -> Ends:
    return Ends(_average(p.weight, p.x0), _average(p.weight, p.x1))
