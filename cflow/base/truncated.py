"""A law of independent entries cut to a box, log p(x) = sum(log q(x_i) - log Q(low_i, high_i))."""

import torch
from torch import Generator, Tensor

from cflow.base.base import Base, Product
from cflow.base.box import Uniform
from cflow.errors import DomainError
from cflow.typing import Batch, Points

__all__ = ["Truncated"]


class Truncated(Base):
    """Cut a product law to a box, with its exact normaliser; draws are quantiles, none rejected.

    Outside the closed box the log density is -inf, never NaN. The mass Q of the box follows the
    parameters of the base, and gradients through `sample` reach them. Masses and quantiles are
    computed in float64, so that a box far in a tail loses no digits.

    Args:
        base: A law whose quantiles are known: `Gaussian`, `DiagonalGaussian`, `ClassConditional` or
            `Uniform`.
        low: Lower end, a number or one for each entry; may be -inf.
        high: Upper end; may be inf.

    Raises:
        DomainError: The base is another law, an upper end is not above its lower one, or the box
            misses that of a uniform base.

    Example:
        >>> from cflow.base.gaussian import Gaussian
        >>> Truncated(Gaussian(1), low=0.0).log_prob(torch.tensor([[0.0], [-1.0]]))
        tensor([-0.2258,    -inf])
    """

    def __init__(
        self, base: Base, *, low: float | Tensor = -torch.inf, high: float | Tensor = torch.inf
    ) -> None:
        super().__init__(base.event_shape)
        if not isinstance(base, Product):
            raise DomainError(
                "Truncated: the base must have independent entries with known quantiles, such as "
                f"DiagonalGaussian or Uniform, got {type(base).__name__}"
            )
        ends = [torch.as_tensor(end, dtype=torch.get_default_dtype()) for end in (low, high)]
        low, high = (end.detach().expand(self.event_shape).clone() for end in ends)
        if not bool((high > low).all()):
            raise DomainError("Truncated: high must be above low in every entry")
        if isinstance(base, Uniform) and bool(base.log_mass(low, high).isneginf().any()):
            raise DomainError("Truncated: the box does not meet the box of its uniform base")
        self.base: Product = base
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        size, low, high = (*shape, *self.event_shape), self.low, self.high
        u = torch.rand(size, dtype=torch.float64, device=low.device, generator=generator)
        share = u.clamp_min(2.0**-54)  # zero would be the quantile at an end, perhaps infinite
        x = self.base.between(low, high, share, context)
        return x.to(low.dtype).clamp(low, high)  # rounding must not carry a point out of the box

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        x = self._enter(x)
        inside = (x >= self.low) & (x <= self.high)
        whole = self.base.log_prob(x, context)
        mass = self.base.log_mass(self.low, self.high, context).to(whole.dtype)
        n = len(self.event_shape)
        if n:
            mass, inside = mass.flatten(mass.dim() - n).sum(-1), inside.flatten(x.dim() - n).all(-1)
        return torch.where(inside, whole - mass, -torch.inf)
