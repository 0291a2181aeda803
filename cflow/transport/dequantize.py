"""Uniform dequantisation: counts and grey levels as a stochastic layer of the flow.

    pull: u = (x + noise) / levels, noise uniform on [0, 1);    push: x = floor(levels u)

With p(u) the density of the continuous part, E_noise[log p(u)] - event size * log(levels) is a
lower bound of log P(x), the probability of the integers themselves.
Source: Theis et al. (2016), A note on the evaluation of generative models, arXiv 1511.01844, 3.1.
"""

import math

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError
from cflow.transport.transport import Stochastic

__all__ = ["Dequantize"]


class Dequantize(Stochastic):
    """Carry integers 0 .. levels-1 to the unit interval and back; the data end of an image flow.

    The likelihood of a flow that ends here is a bound, in nats per point of integer data.

    Args:
        levels: Number of distinct values.

    Raises:
        DomainError: Fewer than two levels.

    Example:
        >>> from cflow.state import State
        >>> layer = Dequantize(17)
        >>> x = torch.tensor([[0, 16, 3]])
        >>> bool((layer.push(layer.pull(State(x))).x == x).all())
        True
    """

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        if levels < 2:
            raise DomainError(f"Dequantize: levels must be at least 2, got {levels}")
        self.levels = levels
        self.unit: Tensor
        self.register_buffer("unit", torch.tensor(1.0))  # follows .to(dtype), for integer input

    def noise(self, y: Tensor, generator: Generator | None) -> Tensor:
        dtype = y.dtype if y.is_floating_point() else self.unit.dtype
        return torch.rand(y.shape, dtype=dtype, device=y.device, generator=generator)

    def _push(self, x: Tensor, context: Tensor | None) -> Tensor:
        return torch.floor(x * self.levels).clamp(0, self.levels - 1)

    def _pull(
        self, y: Tensor, noise: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        u = (y.to(noise.dtype) + noise) / self.levels
        return u, torch.full_like(u, -math.log(self.levels)) if tracked else None
