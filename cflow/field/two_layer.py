"""A field whose divergence is a closed form: a perceptron with two hidden layers.

    h1 = a(W1 x + A1 c + b1),   h2 = a(W2 h1 + A2 c + b2),   v = W3 h2 + A3 c + b3 + W0 x
    div v = tr(W3 S2 W2 S1 W1) + tr W0 = s2' (W2 * (W1 W3)') s1 + tr W0

with c = (Fourier features of t, context), s1 and s2 the slopes of the activations, S = diag(s) and
* the product entry by entry. The matrix between the slopes is the same for all samples, so the
trace costs one product with a matrix of the size of W2, whatever the number of features: about one
more evaluation, where a trace by differentiation takes as many as there are features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cflow.errors import DomainError
from cflow.field.field import AnalyticField
from cflow.field.time import FourierTime
from cflow.nets import Activation, activate, activate_with_slope
from cflow.typing import Batch, Points, Times

__all__ = ["TwoLayerField"]


class TwoLayerField(AnalyticField):
    """Predict a velocity with two hidden layers, and its divergence exactly at the same price.

    W3, A3, b3 and W0 start at zero, so that an ODE along the field starts as the identity.

    Args:
        features: Coordinates of a point (a 1-D event).
        context: Length of the context vector; 0 for none.
        hidden_features: Widths of the two hidden layers.
        activation: The function between layers.
        frequencies: Fourier frequencies of time.
        linear: Add W0 x, the same at all times.

    Raises:
        DomainError: A size is not positive, or there are not two widths.

    Example:
        >>> field = TwoLayerField(3, hidden_features=(16, 8))
        >>> v, div = field.with_divergence(torch.rand(7), torch.randn(7, 3))
        >>> v.shape, div.shape
        (torch.Size([7, 3]), torch.Size([7]))
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        *,
        hidden_features: Sequence[int] = (256, 256),
        activation: Activation = "tanh",
        frequencies: int = 8,
        linear: bool = True,
    ) -> None:
        super().__init__()
        widths = tuple(hidden_features)
        if len(widths) != 2 or min(features, *widths) < 1 or context < 0:
            raise DomainError(
                "TwoLayerField: sizes must be positive and hidden_features two of them, got "
                f"features={features}, context={context}, hidden_features={widths}; a deeper "
                "field has no cheap closed form, take MLPField with Exact() for it"
            )
        self.activation: Activation = activation
        self.time = FourierTime(frequencies)
        self.first = nn.Linear(features, widths[0], bias=False)
        self.second = nn.Linear(widths[0], widths[1], bias=False)
        self.last = nn.Linear(widths[1], features, bias=False)
        self.shift = nn.Linear(self.time.features + context, sum(widths) + features)
        self.linear = nn.Linear(features, features, bias=False) if linear else None
        self._split = (*widths, features)
        with torch.no_grad():
            self.last.weight.zero_()
            self.shift.weight[-features:].zero_()
            self.shift.bias[-features:].zero_()
            if self.linear is not None:
                self.linear.weight.zero_()

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        shift1, shift2, shift3 = self._shifts(t, context)
        h1 = activate(self.activation, self.first(x) + shift1)
        h2 = activate(self.activation, self.second(h1) + shift2)
        return self._velocity(h2, shift3, x)

    def with_divergence(
        self, t: Times, x: Points, context: Tensor | None = None
    ) -> tuple[Points, Batch]:
        shift1, shift2, shift3 = self._shifts(t, context)
        h1, slope1 = activate_with_slope(self.activation, self.first(x) + shift1)
        h2, slope2 = activate_with_slope(self.activation, self.second(h1) + shift2)
        mixing = self.second.weight * (self.first.weight @ self.last.weight).mT
        wide = torch.promote_types(x.dtype, torch.float32)
        div = (slope2 * nn.functional.linear(slope1, mixing)).to(wide).sum(-1)
        if self.linear is not None:
            div = div + self.linear.weight.diagonal().to(wide).sum()
        return self._velocity(h2, shift3, x), div

    def _shifts(self, t: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        """Return A c + b of the three layers."""
        features = self.time(t)
        if context is not None:
            features = torch.cat([features, context], dim=-1)
        return self.shift(features).split(self._split, dim=-1)

    def _velocity(self, h2: Tensor, shift3: Tensor, x: Tensor) -> Tensor:
        v = self.last(h2) + shift3
        return v if self.linear is None else v + self.linear(x)
