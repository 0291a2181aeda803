"""Rotary positions: queries and keys turned by their place, so that attention sees distances.

    (a, b)_k -> (a cos(p w_k) - b sin(p w_k),  b cos(p w_k) + a sin(p w_k)),    w_k = 10000^(-k / n)

with the two halves of a vector of 2 n entries as a and b, at place p.
Source: Su et al. (2021), RoFormer, arXiv 2104.09864, equation 34.
"""

import torch
from torch import Tensor, nn

from cflow.errors import DomainError

__all__ = ["Rotary"]


class Rotary(nn.Module):
    """Turn vectors by their places.

    Args:
        size: Length of the vectors, even.
        places: Length of the longest sequence.
        base: Slowest angular frequency is 1 / base, in radians per place.

    Raises:
        DomainError: The size is odd, or there is no place.

    Example:
        >>> Rotary(2, 3)(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))[1].tolist()[0] < 0.55
        True
    """

    def __init__(self, size: int, places: int, *, base: float = 10_000.0) -> None:
        super().__init__()
        if size < 2 or size % 2 or places < 1:
            raise DomainError(
                f"Rotary: size must be even and positive, places positive, got size={size}, "
                f"places={places}"
            )
        k = torch.arange(size // 2, dtype=torch.float64)
        angle = torch.arange(places, dtype=torch.float64)[:, None] * base ** (-2 * k / size)
        self.cos: Tensor
        self.sin: Tensor
        wide = torch.get_default_dtype()
        self.register_buffer("cos", angle.cos().to(wide), persistent=False)
        self.register_buffer("sin", angle.sin().to(wide), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        """Return `(*batch, places, size)` for h of that shape, in its dtype; places from 0 on."""
        n = h.shape[-2]
        cos, sin = self.cos[:n].to(h.dtype), self.sin[:n].to(h.dtype)
        a, b = h.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
