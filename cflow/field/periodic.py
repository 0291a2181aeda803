"""A field of angles: whoever goes once round finds the same velocity.

    v(t, x) = MLP(sin(2 pi k x / P), cos(2 pi k x / P); t, context),    k = 1 .. frequencies

A network that saw the angles themselves would jump where they come round, and so would the flow,
whose likelihood would be wrong without a sign of it.
Source: Rezende et al. (2020), Normalizing flows on tori and spheres, arXiv 2002.02428, section 2.2;
Chen and Lipman (2024), Flow matching on general geometries, arXiv 2302.03660.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from cflow.errors import ShapeError
from cflow.field.field import Field
from cflow.field.time import TimeEmbedding
from cflow.field.timed import TimedMLP
from cflow.nets import Activation, PeriodicFeatures
from cflow.typing import Points, Times

__all__ = ["PeriodicField"]


class PeriodicField(Field):
    """Predict a velocity on a torus with a perceptron that sees waves of the angles.

    Args:
        features: Angles of a point, or the shape of one; with `circular` also other coordinates.
        context: Length of the context vector; 0 for none.
        circular: Which entries of a point are angles, in order; all by default. The others are
            seen as they are, so that products of tori with other manifolds take one field.
        period: Length of the way round, in the units of the angles: that of `Torus`.
        frequencies: Waves of each angle: k up to this number.
        hidden_features: Widths of the hidden layers.
        time: How the network sees time; `FourierTime(8)` by default.
        activation: The function between layers.
        residual: Skip connections between hidden layers of equal width.
        dropout: Dropout probability in training.

    Raises:
        ShapeError: `circular` has not one flag for each entry; on use, points of another shape.
        DomainError: A size or the period is out of range.

    Example:
        >>> import torch
        >>> field = PeriodicField(2, period=360.0)
        >>> low, high = torch.tensor([[0.0, 90.0]]), torch.tensor([[360.0, 90.0]])
        >>> torch.allclose(field(torch.zeros(1), low), field(torch.zeros(1), high), atol=1e-5)
        True
    """

    def __init__(
        self,
        features: Sequence[int] | int,
        context: int = 0,
        *,
        circular: Sequence[bool] | None = None,
        period: float = 2 * math.pi,
        frequencies: int = 3,
        hidden_features: Sequence[int] = (64, 64, 64),
        time: TimeEmbedding | None = None,
        activation: Activation = "silu",
        residual: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        shape = (features,) if isinstance(features, int) else tuple(features)
        entries = math.prod(shape)
        if circular is not None and len(circular) != entries:
            raise ShapeError(
                f"PeriodicField: circular needs one flag for each of the {entries} entries of a "
                f"point, got {len(circular)}"
            )
        self.net = TimedMLP(
            shape,
            entries,
            context,
            seen=PeriodicFeatures(
                entries if circular is None else circular, frequencies=frequencies, period=period
            ),
            hidden_features=hidden_features,
            time=time,
            activation=activation,
            residual=residual,
            dropout=dropout,
        )

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        return self.net(t, x, context).reshape(x.shape)
