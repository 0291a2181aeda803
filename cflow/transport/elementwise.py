"""Elementwise maps with fixed constants: logit for bounded data, and a plain scale and shift.

    logit: y = log(s / (1 - s)),  s = alpha + (1 - 2 alpha) x,  x in [0, 1]

Source: Dinh et al. (2017), Density estimation using Real NVP, arXiv 1605.08803, section 4.1.
"""

import math

import torch
from torch import Tensor

from cflow.errors import DomainError
from cflow.transport.transport import Layer

__all__ = ["Affine", "Logit"]


class Logit(Layer):
    """Open the unit interval to the real line; push goes outward.

    On the data side of a flow it stands inverted: `Inverse(Logit())` pushes real numbers to [0, 1].

    Args:
        alpha: Margin kept away from both ends, so that x = 0 and x = 1 stay finite.

    Raises:
        DomainError: alpha lies outside [0, 0.5).

    Example:
        >>> from cflow.state import State
        >>> Logit(alpha=0.05).push(State(torch.tensor([[0.0, 0.5]]))).x
        tensor([[-2.9444,  0.0000]])
    """

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__(event_dim=0)
        if not 0 <= alpha < 0.5:
            raise DomainError(f"Logit: alpha must lie in [0, 0.5), got {alpha}")
        self.alpha = alpha

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        s = self.alpha + (1 - 2 * self.alpha) * x
        y = torch.log(s) - torch.log1p(-s)
        if not tracked:
            return y, None
        return y, math.log(1 - 2 * self.alpha) - torch.log(s) - torch.log1p(-s)

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        x = (torch.sigmoid(y) - self.alpha) / (1 - 2 * self.alpha)
        if not tracked:
            return x, None
        slope = torch.nn.functional.logsigmoid(y) + torch.nn.functional.logsigmoid(-y)
        return x, slope - math.log(1 - 2 * self.alpha)


class Affine(Layer):
    """Scale and shift by constants, y = scale x + shift: units, centring, reversal.

    Args:
        scale: Factor for every entry, or one that broadcasts against the event; never zero.
        shift: Added after scaling.

    Raises:
        DomainError: A scale is zero or not finite.

    Example:
        >>> from cflow.state import State
        >>> Affine(2.0, 1.0).push(State(torch.ones(1, 2))).x
        tensor([[3., 3.]])
    """

    def __init__(self, scale: float | Tensor = 1.0, shift: float | Tensor = 0.0) -> None:
        super().__init__(event_dim=0)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.get_default_dtype()))
        self.register_buffer("shift", torch.as_tensor(shift, dtype=torch.get_default_dtype()))
        if not bool((torch.isfinite(self.scale) & (self.scale != 0)).all()):
            raise DomainError(f"Affine: scale must be finite and not zero, got {scale}")

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        y = self.scale * x + self.shift
        return y, self.scale.abs().log().expand_as(y) if tracked else None

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        x = (y - self.shift) / self.scale
        return x, -self.scale.abs().log().expand_as(x) if tracked else None
