"""A field trained on one schedule, run on another.

    x_new(t) = c x_old(s),    alpha_old/sigma_old at s = alpha_new/sigma_new at t
    v_new(t, x) = (c'/c) x + c s' v_old(s, x / c)

Both paths pass through the same points up to the factor c, so the samples agree in the limit of
small steps; what changes is where steps are spent. With the Wronskian W = alpha' sigma - alpha
sigma' the rate is s' = W_new / (W_old c^2), finite at both ends.
Source: Karras et al. (2022), arXiv 2206.00364, section 4; Shaul et al. (2023), Bespoke solvers for
generative flow models, arXiv 2310.19075, proposition 2.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cflow.field.field import Field
from cflow.field.schedule import Coefficients, PathSchedule, moving
from cflow.typing import Points, Times

__all__ = ["RetimedField"]


class RetimedField(Field):
    """Follow the path of a new schedule with a field trained on an old one.

    Where the new schedule starts from purer noise than the old one ever has, or ends with less,
    points stand still (up to the factor c) before the old schedule begins and after it has ended.

    Args:
        field: The trained velocity.
        old: The schedule of its training.
        new: The schedule to sample on.

    Example:
        >>> from cflow.field import CosineSchedule, LinearSchedule, MLPField
        >>> field = RetimedField(MLPField(2), LinearSchedule(), CosineSchedule())
        >>> field(torch.ones(3), torch.randn(3, 2)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        field: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        old: PathSchedule,
        new: PathSchedule,
    ) -> None:
        super().__init__()
        self.field = field
        self.old = old
        self.new = new

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        new = self.new(t)
        s = self.old.time((new.alpha / new.sigma).log())
        old = self.old(s)
        mixed, kept = new.alpha * old.sigma, old.alpha * new.sigma  # equal while the old path runs
        ended = ((s <= 0) & (mixed < kept * (1 - 1e-5))) | ((s >= 1) & (kept < mixed * (1 - 1e-5)))
        s = moving(self.old, s)
        old = self.old(s)
        square = _norm(new) / _norm(old)
        speed = torch.where(ended, 0.0, new.wronskian / (old.wronskian * square))
        growth = _slope(new) / _norm(new) - speed * _slope(old) / _norm(old)
        rest = (1,) * (x.dim() - t.dim())
        c, growth, speed = (p.reshape(t.shape + rest) for p in (square.sqrt(), growth, speed))
        return growth * x + c * speed * self.field(s, x / c, context)


def _norm(c: Coefficients) -> Tensor:
    return c.alpha.square() + c.sigma.square()


def _slope(c: Coefficients) -> Tensor:
    return c.alpha * c.d_alpha + c.sigma * c.d_sigma
