"""Angles as a network should see them: by waves that come round, sin(k w x) and cos(k w x).

    w = 2 pi / period,    k = 1 .. frequencies

A network of these features is the same at 0 and at the period, with all its derivatives, and so is
every density that it steers. Features that live on a line pass as they are.
Source: Rezende et al. (2020), Normalizing flows on tori and spheres, arXiv 2002.02428, section 2.2.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cflow.errors import DomainError, expect_positive, expect_trailing

__all__ = ["Embedded", "PeriodicFeatures"]


class PeriodicFeatures(nn.Module):
    """Turn each angle into waves, feature after feature; other features stay.

    Args:
        circular: Number of angles, or one flag per feature, true for angles.
        frequencies: Waves of each angle: k up to this number, a sine and a cosine each.
        period: Length of the way round, in the units of the angles.

    Attributes:
        outputs: Length of the result.

    Raises:
        DomainError: No wave, or a period that is not positive.
        ShapeError: Points with another number of features.

    Example:
        >>> seen = PeriodicFeatures([True, False], frequencies=1, period=360.0)
        >>> seen(torch.tensor([90.0, 5.0])).round(decimals=4) + 0.0
        tensor([1., 0., 5.])
    """

    def __init__(
        self,
        circular: int | Sequence[bool],
        *,
        frequencies: int = 3,
        period: float = 2 * math.pi,
    ) -> None:
        super().__init__()
        expect_positive("PeriodicFeatures", frequencies=frequencies, period=period)
        flags = [True] * circular if isinstance(circular, int) else list(circular)
        waves = [(k, phase) for k in range(1, frequencies + 1) for phase in (0.0, math.pi / 2)]
        entries = [
            (place, *entry)
            for place, flag in enumerate(flags)
            for entry in (waves if flag else [(0, 0.0)])
        ]
        self.features, self.outputs, self.period = len(flags), len(entries), period
        self.source: Tensor
        self.frequency: Tensor
        self.phase: Tensor
        place, frequency, phase = zip(*entries, strict=True) if entries else ((), (), ())
        self.register_buffer("source", torch.tensor(place, dtype=torch.long), persistent=False)
        self.register_buffer("frequency", torch.tensor(frequency), persistent=False)
        self.register_buffer("phase", torch.tensor(phase), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(*batch, outputs)` for x `(*batch, features)`, in float32 at least."""
        expect_trailing("PeriodicFeatures", "x", x, (self.features,))
        wide = torch.promote_types(x.dtype, torch.float32)
        x = x.to(wide).index_select(-1, self.source)
        turns = 2 * math.pi / self.period * self.frequency.to(wide)
        return torch.where(self.frequency > 0, torch.sin(turns * x + self.phase.to(wide)), x)

    def spread(self, adjacency: Tensor) -> Tensor:
        """Return who reads which wave, where `adjacency` says who reads which feature.

        Args:
            adjacency: True at (i, j) where output i reads feature j.

        Example:
            >>> links = torch.tensor([[False, False], [True, False]])
            >>> PeriodicFeatures(2, frequencies=1).spread(links).int().tolist()
            [[0, 0, 0, 0], [1, 1, 0, 0]]
        """
        if adjacency.dim() != 2 or adjacency.shape[1] != self.features:
            raise DomainError(
                f"PeriodicFeatures.spread: an adjacency must have {self.features} columns, got "
                f"{tuple(adjacency.shape)}"
            )
        return adjacency[:, self.source.to(adjacency.device)]


class Embedded(nn.Module):
    """A network that reads features of its input, net(embed(x), context).

    Args:
        embed: A module from x to its features.
        net: A module called as `net(features, context)`.

    Example:
        >>> from cflow.nets import MLP
        >>> seen = PeriodicFeatures(2)
        >>> net = Embedded(seen, MLP(seen.outputs, 4))
        >>> x = torch.tensor([0.0, 1.0])
        >>> torch.allclose(net(x), net(x + 2 * torch.pi), atol=1e-4)
        True
    """

    def __init__(
        self, embed: nn.Module, net: Callable[[Tensor, Tensor | None], Tensor] | nn.Module
    ) -> None:
        super().__init__()
        self.embed = embed
        self.net = net

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return what the network says of the features of x."""
        return self.net(self.embed(x), context)
