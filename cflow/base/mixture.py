"""A mixture of diagonal normal laws, log p(x) = logsumexp_k(log w_k + log N(x; m_k, s_k))."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from cflow.base.base import Base
from cflow.base.entries import noise, normal_log_prob, summed, wide
from cflow.errors import DomainError, expect_finite, expect_positive, expect_trailing
from cflow.typing import Batch, Points

__all__ = ["Mixture"]


class Mixture(Base):
    """Normal components with learned weights, means and scales.

    A draw picks a component, then a point of it. Gradients through `sample` reach the means and
    scales of the picked components; towards the weights they are missing, because a pick has none.
    `log_prob` has gradients for all three.

    Args:
        components: Number of components.
        event_shape: Shape of one point, or a number of features.
        spread: Standard deviation of the random means at the start, in units of the points.

    Raises:
        DomainError: There is no component, or the spread is not positive.

    Example:
        >>> base = Mixture(2, 1)
        >>> base.fit(torch.tensor([[-3.0], [-3.2], [3.0], [3.2]]))
        >>> base.mean.detach().flatten().sort().values
        tensor([-3.1000,  3.1000])
    """

    def __init__(
        self, components: int, event_shape: Sequence[int] | int, *, spread: float = 1.0
    ) -> None:
        super().__init__(event_shape)
        expect_positive("Mixture", components=components, spread=spread)
        self.logits = nn.Parameter(torch.zeros(components))
        self.mean = nn.Parameter(spread * torch.randn(components, *self.event_shape))
        self.log_scale = nn.Parameter(torch.zeros(components, *self.event_shape))

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        steps = wide(self.logits).softmax(0).detach().cumsum(0)
        u = torch.rand(tuple(shape), dtype=steps.dtype, device=steps.device, generator=generator)
        pick = torch.searchsorted(steps, u, right=True).clamp_max(len(steps) - 1)
        e = noise((*shape, *self.event_shape), self.mean, generator)
        x = wide(self.mean)[pick] + wide(self.log_scale)[pick].exp() * e
        return x.to(self.mean.dtype)

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        n = len(self.event_shape)
        x = self._enter(x).unsqueeze(-n - 1)
        each = summed(normal_log_prob(x, wide(self.mean), wide(self.log_scale)), n)
        return torch.logsumexp(each + wide(self.logits).log_softmax(0), -1)

    @torch.no_grad()
    def fit(self, x: Points, *, steps: int = 20, generator: Generator | None = None) -> None:
        """Set the components to clusters of the points, found by Lloyd steps from k-means++ seeds.

        Means become the clusters' means, weights their shares (each with one point added), scales
        their spreads, at least a thousandth of the spread of all points.

        Args:
            x: Points `(*batch, *event_shape)`, at least one for each component.
            steps: Lloyd steps.
            generator: Source of the seeds.

        Raises:
            DomainError: There are too few points, or some are not finite.

        References:
            Arthur and Vassilvitskii (2007), k-means++: the advantages of careful seeding, SODA.
        """
        expect_trailing("Mixture.fit", "x", x, self.event_shape)
        expect_finite("Mixture.fit", "x", x)
        rows = wide(x).reshape(-1, self.mean[0].numel()).to(self.mean.device)
        components = len(self.logits)
        if len(rows) < components:
            raise DomainError(
                f"Mixture.fit: {components} components need as many points, got {len(rows)}"
            )
        centres = _seeds(rows, components, generator)
        nearest = torch.cdist(rows, centres).argmin(1)
        for _ in range(steps):
            centres = _means(rows, nearest, centres)
            nearest = torch.cdist(rows, centres).argmin(1)
        squares = (rows - centres[nearest]).square()
        all_rows = rows.var(0, correction=0)  # the spread of a cluster that holds none
        variance = _means(squares, nearest, all_rows.expand_as(centres))
        floor = (1e-3 * all_rows.sqrt()).clamp_min(torch.finfo(rows.dtype).eps)
        self.mean.copy_(centres.reshape(self.mean.shape))
        self.log_scale.copy_(variance.sqrt().maximum(floor).log().reshape(self.mean.shape))
        self.logits.copy_((torch.bincount(nearest, minlength=components) + 1).log())


def _seeds(rows: Tensor, components: int, generator: Generator | None) -> Tensor:
    """Choose rows in turn, each with a probability that grows as its squared distance to them."""
    chance = rows.new_ones(len(rows))
    picked = []
    for _ in range(components):
        steps = chance.double().cumsum(0)
        u = torch.rand((), dtype=steps.dtype, device=rows.device, generator=generator)
        pick = torch.searchsorted(steps, u * steps[-1], right=True).clamp_max(len(rows) - 1)
        picked.append(rows[pick])
        chance = torch.cdist(rows, torch.stack(picked)).amin(1).square()
    return torch.stack(picked)


def _means(values: Tensor, cluster: Tensor, empty: Tensor) -> Tensor:
    """Average values over each cluster; an empty cluster keeps its row of `empty`."""
    counts = torch.bincount(cluster, minlength=len(empty)).unsqueeze(-1)
    sums = torch.zeros_like(empty).index_add(0, cluster, values)
    return torch.where(counts > 0, sums / counts.clamp_min(1), empty)
