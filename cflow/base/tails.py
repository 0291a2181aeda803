"""Laws with other tails than the normal one: Student's, and the generalised normal law.

    Student: log p(z) = lgamma((v + 1) / 2) - lgamma(v / 2) - log(v pi) / 2
                        - (v + 1) / 2 log(1 + z^2 / v)
    generalised: log p(z) = log b - log 2 - lgamma(1 / b) - |z|^b

both with z = (x - mean) / scale and -log(scale) added. Draws go through gamma variables, whose
gradients with respect to their shape are implicit.
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from cflow.base.base import Centred
from cflow.base.entries import noise, summed, wide
from cflow.errors import DomainError
from cflow.typing import Batch, Points

__all__ = ["GeneralisedGaussian", "StudentT"]


class StudentT(Centred):
    """Independent Student entries with means, scales and, if wanted, learned degrees of freedom.

    Degrees of freedom and scales are exponentials of their parameters, positive by construction.
    Gradients through `sample` reach all of them.

    Args:
        event_shape: Shape of one point, or a number of features.
        degrees: Degrees of freedom at the start, a number or one for each entry.
        learned: Whether the degrees of freedom are learned.

    Raises:
        DomainError: The degrees of freedom are not positive and finite.

    References:
        Jaini et al. (2020), Tails of Lipschitz triangular flows, arXiv 1907.04481; Figurnov et al.
        (2018), Implicit reparameterization gradients, arXiv 1805.08498.

    Example:
        >>> StudentT(1, degrees=1.0).log_prob(torch.zeros(1, 1)).detach()  # Cauchy: -log(pi)
        tensor([-1.1447])
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        *,
        degrees: float | Tensor = 5.0,
        learned: bool = True,
    ) -> None:
        super().__init__(event_shape)
        self.mean = nn.Parameter(torch.zeros(self.event_shape))
        self.log_scale = nn.Parameter(torch.zeros(self.event_shape))
        start = _log_start("StudentT", "degrees", degrees, self.event_shape)
        self.log_degrees: Tensor
        if learned:
            self.log_degrees = nn.Parameter(start)
        else:
            self.register_buffer("log_degrees", start)

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        size, half = (*shape, *self.event_shape), 0.5 * wide(self.log_degrees).exp()
        e = noise(size, half, generator)
        z = e * (half / _gamma(half.expand(size), generator)).sqrt()
        return (wide(self.mean) + wide(self.log_scale).exp() * z).to(self.mean.dtype)

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        log_scale, degrees = wide(self.log_scale), wide(self.log_degrees).exp()
        z = (self._enter(x) - wide(self.mean)) * (-log_scale).exp()
        exact = degrees.double()  # in float32 the difference of large lgammas loses its digits
        constant = torch.lgamma(0.5 * (exact + 1)) - torch.lgamma(0.5 * exact) - 0.5 * exact.log()
        entries = constant.to(degrees.dtype) - 0.5 * math.log(math.pi) - log_scale
        entries = entries - 0.5 * (degrees + 1) * (z.square() / degrees).log1p()
        return summed(entries, len(self.event_shape))

    def centre(self, context: Tensor | None = None) -> Tensor:
        return wide(self.mean)


class GeneralisedGaussian(Centred):
    """Independent entries with tails exp(-|z|^shape), shape, means and scales learned.

    Shape 2 is the normal law of variance 1/2, shape 1 the Laplace law. Shapes and scales are
    exponentials of their parameters, positive by construction. Gradients through `sample` reach all
    of them.

    Args:
        event_shape: Shape of one point, or a number of features.
        shape: Power of the tails at the start, a number or one for each entry.
        learned: Whether the power is learned.

    Raises:
        DomainError: The power is not positive and finite.

    References:
        Nadarajah (2005), A generalized normal distribution, Journal of Applied Statistics 32(7).

    Example:
        >>> GeneralisedGaussian(1, shape=1.0).log_prob(torch.zeros(1, 1)).detach()  # -log 2
        tensor([-0.6931])
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        *,
        shape: float | Tensor = 2.0,
        learned: bool = True,
    ) -> None:
        super().__init__(event_shape)
        self.mean = nn.Parameter(torch.zeros(self.event_shape))
        self.log_scale = nn.Parameter(torch.zeros(self.event_shape))
        start = _log_start("GeneralisedGaussian", "shape", shape, self.event_shape)
        self.log_shape: Tensor
        if learned:
            self.log_shape = nn.Parameter(start)
        else:
            self.register_buffer("log_shape", start)

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        size, power = (*shape, *self.event_shape), wide(self.log_shape).exp()
        coin = torch.rand(size, dtype=power.dtype, device=power.device, generator=generator)
        magnitude = _gamma((1 / power).expand(size), generator) ** (1 / power)
        z = torch.where(coin < 0.5, -magnitude, magnitude)
        return (wide(self.mean) + wide(self.log_scale).exp() * z).to(self.mean.dtype)

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        log_scale, power = wide(self.log_scale), wide(self.log_shape).exp()
        z = ((self._enter(x) - wide(self.mean)) * (-log_scale).exp()).abs()
        safe = torch.where(z > 0, z, 1.0)  # 0^b has an infinite derivative in b, times zero
        tail = torch.where(z > 0, safe**power, 0.0)
        constant = wide(self.log_shape) - math.log(2) - torch.lgamma(1 / power)
        return summed(constant - tail - log_scale, len(self.event_shape))

    def centre(self, context: Tensor | None = None) -> Tensor:
        return wide(self.mean)


def _log_start(where: str, name: str, value: float | Tensor, shape: tuple[int, ...]) -> Tensor:
    """Check a positive start and return its logarithm for each entry."""
    start = torch.as_tensor(value, dtype=torch.get_default_dtype()).detach()
    if not bool((torch.isfinite(start) & (start > 0)).all()):
        raise DomainError(f"{where}: {name} must be positive and finite, got {value}")
    return start.log().expand(shape).clone()


def _gamma(concentration: Tensor, generator: Generator | None) -> Tensor:
    """Draw gamma variables of rate 1, with implicit gradients; kept from underflow to zero."""
    draw = torch._standard_gamma(concentration, generator=generator)
    return draw.clamp_min(torch.finfo(draw.dtype).tiny)
