"""Scaled noise: the law of centre + temperature (x - centre), normalised.

log p_T(x) = log p(centre + (x - centre) / T) - n log T
"""

import math

from torch import Generator, Tensor

from cflow.base.base import Base, Centred
from cflow.base.entries import wide
from cflow.errors import DomainError, expect_positive
from cflow.typing import Batch, Points

__all__ = ["Tempered", "tempered"]


class Tempered(Base):
    """A centred law whose noise is scaled; for a normal law its standard deviations times T.

    For normal laws this is the density raised to 1 / T^2 and normalised again. It shares the
    modules of its base, and is an exact law of its own: sampling and evaluating agree.

    Args:
        base: A law with a centre: normal laws, `StudentT`, `GeneralisedGaussian`.
        temperature: Factor T of the noise; below 1 it draws nearer to the centre.

    Raises:
        DomainError: The law has no centre, or the temperature is not positive.

    References:
        Kingma and Dhariwal (2018), Glow, arXiv 1807.03039, for samples at reduced temperature.

    Example:
        >>> import torch
        >>> from cflow.base.gaussian import Gaussian
        >>> Tempered(Gaussian(1), 0.5).log_prob(torch.zeros(1, 1))  # -log(0.5) - log(2 pi) / 2
        tensor([-0.2258])
    """

    def __init__(self, base: Base, temperature: float) -> None:
        super().__init__(base.event_shape)
        expect_positive("tempered", temperature=temperature)
        if not isinstance(base, Centred):
            raise DomainError(
                "tempered: only laws of noise about a centre can be scaled, such as Gaussian or "
                f"DiagonalGaussian, got {type(base).__name__}"
            )
        self.base: Centred = base
        self.temperature = temperature

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        x = self.base.sample(shape, context, generator=generator)
        centre = self.base.centre(context)
        return (centre + self.temperature * (wide(x) - centre)).to(x.dtype)

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        centre = self.base.centre(context)
        inner = centre + (self._enter(x) - centre) / self.temperature
        return self.base.log_prob(inner, context) - self._entries() * math.log(self.temperature)

    def _entries(self) -> int:
        return math.prod(self.event_shape)


def tempered(base: Base, temperature: float) -> Tempered:
    """Scale the noise of a base by a temperature; see `Tempered`.

    Example:
        >>> from cflow.base.gaussian import Gaussian
        >>> cool = tempered(Gaussian(2), 0.7)  # Flow(cool, flow.transport) samples nearer the modes
        >>> cool.sample((5,)).shape
        torch.Size([5, 2])
    """
    return Tempered(base, temperature)
