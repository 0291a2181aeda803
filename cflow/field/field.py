"""Velocity fields: what an ODE follows, and what flow matching regresses.

dx/dt = v(t, x, context),    t in [0, 1], 0 = base, 1 = data
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from cflow.typing import Batch, Points, Times

__all__ = ["AnalyticField", "Field", "FunctionField"]


class Field(nn.Module, ABC):
    """Give a velocity to every point at every time.

    Authors write `forward`; callers broadcast, so `t` always comes as `(*batch,)` in the dtype of
    x, in training and in solving alike, and the velocity has the shape of x.

    Attributes:
        conserves: Whether as much flows into an edge of a surface as out of it on the other side,
            as `SurfaceField` sees to. Likelihoods on meshes ask for it; set it on a field of your
            own that keeps its mass.
    """

    conserves: bool = False

    @abstractmethod
    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        """Return the velocity at x.

        Args:
            t: Times in [0, 1], `(*batch,)`.
            x: Points, `(*batch, *event)`.
            context: Condition, `(*batch, *context)`, or None.

        Returns:
            The velocity, `(*batch, *event)`.
        """


class AnalyticField(Field):
    """A field that knows its divergence in closed form, cheaper than a trace by differentiation.

    Authors write `with_divergence` beside `forward`; both must give the same velocity.
    """

    @abstractmethod
    def with_divergence(
        self, t: Times, x: Points, context: Tensor | None = None
    ) -> tuple[Points, Batch]:
        """Return the velocity and its divergence; arguments as for `forward`.

        Returns:
            The velocity `(*batch, *event)` and sum_i dv_i/dx_i, `(*batch,)`.
        """


class FunctionField(Field):
    """Make a field of a plain function `v(t, x, context)`; modules it calls keep their parameters.

    Example:
        >>> import torch
        >>> rotate = FunctionField(lambda t, x, context: x.flip(-1) * torch.tensor([-1.0, 1.0]))
        >>> rotate(torch.zeros(1), torch.tensor([[1.0, 0.0]]))
        tensor([[-0., 1.]])
    """

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        return self.function(t, x, context)
