"""Time as a network sees it: Fourier features of t in [0, 1]."""

import torch
from torch import Tensor, nn

from cflow.errors import DomainError
from cflow.typing import Times

__all__ = ["FourierTime"]


class FourierTime(nn.Module):
    """Embed t as (sin(k pi t / 2), cos(k pi t / 2)) for k = 1..frequencies.

    The slowest feature is monotonic on [0, 1], so no two times look alike.

    Args:
        frequencies: Number of frequencies; the embedding has twice as many features.

    Example:
        >>> FourierTime(2)(torch.zeros(1))
        tensor([[0., 0., 1., 1.]])
    """

    def __init__(self, frequencies: int = 8) -> None:
        super().__init__()
        if frequencies < 1:
            raise DomainError(f"FourierTime: frequencies must be at least 1, got {frequencies}")
        self.features = 2 * frequencies
        self.angular: Tensor
        self.register_buffer("angular", torch.arange(1, frequencies + 1) * (torch.pi / 2))

    def forward(self, t: Times) -> Tensor:
        """Return the embedding, `(*batch, 2 * frequencies)`, in the dtype of t."""
        phase = t[..., None] * self.angular.to(t.dtype)
        return torch.cat([phase.sin(), phase.cos()], dim=-1)
