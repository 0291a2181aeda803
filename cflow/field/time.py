"""Time as a network sees it: waves of t in [0, 1].

Sources: Vaswani et al. (2017), Attention is all you need, arXiv 1706.03762, section 3.5; Ho et al.
(2020), Denoising diffusion probabilistic models, arXiv 2006.11239, appendix B.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from cflow.errors import DomainError, expect_positive
from cflow.typing import Times

__all__ = ["FourierTime", "SinusoidalTime", "TimeEmbedding"]


class TimeEmbedding(nn.Module, ABC):
    """Turn times into features, for networks that have to tell them apart.

    Args:
        features: Length of the embedding.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    @abstractmethod
    def forward(self, t: Times) -> Tensor:
        """Return the embedding of times `(*batch,)`, `(*batch, features)`, in the dtype of t."""


class FourierTime(TimeEmbedding):
    """Embed t as (sin(k pi t / 2), cos(k pi t / 2)) for k = 1..frequencies.

    The slowest feature is monotonic on [0, 1], so no two times look alike.

    Args:
        frequencies: Number of frequencies; the embedding has twice as many features.

    Raises:
        DomainError: There is no frequency.

    Example:
        >>> FourierTime(2)(torch.zeros(1))
        tensor([[0., 0., 1., 1.]])
    """

    def __init__(self, frequencies: int = 8) -> None:
        super().__init__(2 * _expect_frequencies("FourierTime", frequencies))
        self.angular: Tensor
        self.register_buffer("angular", torch.arange(1, frequencies + 1) * (torch.pi / 2))

    def forward(self, t: Times) -> Tensor:
        phase = t[..., None] * self.angular.to(t.dtype)
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


class SinusoidalTime(TimeEmbedding):
    """Embed t as (sin(w_k t), cos(w_k t)) with w_k = scale 10000^(-k / frequencies), k = 0, 1, ...

    The embedding of transformers and diffusion models, whose steps 0 .. 1000 are `scale` t. It
    resolves times finer than `FourierTime` does; a field that is solved to a tight tolerance is
    smoother, and cheaper, with a smaller scale. Phases are taken in float32 at least, whatever
    precision the module is cast to: rounded ones would be those of other times.

    Args:
        frequencies: Number of frequencies; the embedding has twice as many features.
        scale: Largest angular frequency, in radians per unit of time.

    Raises:
        DomainError: There is no frequency, or the scale is not positive.

    Example:
        >>> SinusoidalTime(1, scale=1.0)(torch.tensor([0.0, 1.0]))
        tensor([[0.0000, 1.0000],
                [0.8415, 0.5403]])
    """

    def __init__(self, frequencies: int = 128, *, scale: float = 1000.0) -> None:
        super().__init__(2 * _expect_frequencies("SinusoidalTime", frequencies))
        expect_positive("SinusoidalTime", scale=scale)
        self.frequencies, self.scale = frequencies, scale

    def forward(self, t: Times) -> Tensor:
        wide = torch.promote_types(t.dtype, torch.float32)
        # Frequencies are rounded once: a thousand radians turn each rounding of their own into
        # 6e-5 of a phase, which differs between eager mode and exported files.
        k = torch.arange(self.frequencies, dtype=torch.float64)
        angular = (self.scale * 10_000.0 ** (-k / self.frequencies)).to(t.device, wide)
        phase = t.to(wide)[..., None] * angular
        return torch.cat([phase.sin(), phase.cos()], dim=-1).to(t.dtype)


def _expect_frequencies(where: str, frequencies: int) -> int:
    if frequencies < 1:
        raise DomainError(f"{where}: frequencies must be at least 1, got {frequencies}")
    return frequencies
