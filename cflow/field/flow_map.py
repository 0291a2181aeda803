"""Flow maps: the average velocity between two times, for few-step models.

    u(r, t, x) = (1 / (t - r)) int_r^t v(s, x_s) ds,   x_r = x,        x_t = x + (t - r) u(r, t, x)

A field says where a point is heading; a flow map says where it will have got to. Where both times
are one, it is the field: u(t, t, x) = v(t, x). The networks are those of the fields: what changes
is that they see two times, the start r and the span t - r.
Source: Geng et al. (2025), Mean flows for one-step generative modeling, arXiv 2505.13447, equation
3; Boffi et al. (2024), Flow map matching, arXiv 2406.07507. Their time runs from data to noise.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from cflow.errors import DomainError, ShapeError
from cflow.field.field import Field
from cflow.field.time import TimeEmbedding
from cflow.typing import Points, Times

__all__ = ["FlowMap", "InstantField", "NetworkFlowMap", "SpanTime"]


class FlowMap(nn.Module, ABC):
    """Give the average velocity of every point from one time to another.

    Authors write `forward`; callers broadcast, so both times come as `(*batch,)` in the dtype of x.
    """

    @abstractmethod
    def forward(self, r: Times, t: Times, x: Points, context: Tensor | None = None) -> Points:
        """Return the average velocity from r to t of what is at x at time r.

        Args:
            r: Times at which the points stand, in [0, 1], `(*batch,)`.
            t: Times to which they go, `(*batch,)`; the velocity itself where they are r.
            x: Points at r, `(*batch, *event)`.
            context: Condition, `(*batch, *context)`, or None.

        Returns:
            The average velocity, `(*batch, *event)`.
        """


class SpanTime(TimeEmbedding):
    """Embed a start and a span, `(*batch, 2)`, side by side: what a network of a flow map sees.

    Args:
        start: Embeds the start r.
        span: Embeds the length t - r; slow waves keep the derivative along r, on which mean flows
            are trained, quiet.

    Raises:
        ShapeError: When times come singly, as a velocity field is given them.

    Example:
        >>> from cflow.field import FourierTime
        >>> SpanTime(FourierTime(4), FourierTime(1))(torch.tensor([[0.0, 1.0]])).shape
        torch.Size([1, 10])
    """

    def __init__(self, start: TimeEmbedding, span: TimeEmbedding) -> None:
        super().__init__(start.features + span.features)
        self.start = start
        self.span = span

    def forward(self, t: Times) -> Tensor:
        if t.shape[-1:] != (2,):
            raise ShapeError(
                f"SpanTime: times must be starts and spans (*batch, 2), got {tuple(t.shape)}; a "
                "network with a SpanTime is used through NetworkFlowMap"
            )
        return torch.cat([self.start(t[..., 0]), self.span(t[..., 1])], dim=-1)


class NetworkFlowMap(FlowMap):
    """Make a flow map of a field whose network sees time through a `SpanTime`.

    Args:
        field: `MLPField`, `UNetField` or `DiTField` with `time=SpanTime(...)`.

    Raises:
        DomainError: The field sees one time only.

    Example:
        >>> from cflow.field import FourierTime, MLPField
        >>> time = SpanTime(FourierTime(4), FourierTime(4))
        >>> flow_map = NetworkFlowMap(MLPField(2, time=time))
        >>> flow_map(torch.zeros(5), torch.ones(5), torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(self, field: Field) -> None:
        super().__init__()
        if not any(isinstance(part, SpanTime) for part in field.modules()):
            raise DomainError(
                f"NetworkFlowMap: the network of {type(field).__name__} sees one time; build it "
                "with time=SpanTime(FourierTime(2), FourierTime(2)) to show it two"
            )
        self.field = field

    def forward(self, r: Times, t: Times, x: Points, context: Tensor | None = None) -> Points:
        return self.field(torch.stack([r, t - r], dim=-1), x, context)


class InstantField(Field):
    """The velocity field that a flow map holds: v(t, x) = u(t, t, x).

    It is the map's own teacher: solved finely, it gives the likelihood that its leaps approximate.

    Args:
        flow_map: The average velocity.

    Example:
        >>> from cflow.field import FourierTime, MLPField
        >>> flow_map = NetworkFlowMap(MLPField(2, time=SpanTime(FourierTime(4), FourierTime(4))))
        >>> InstantField(flow_map)(torch.zeros(5), torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(self, flow_map: FlowMap) -> None:
        super().__init__()
        self.flow_map = flow_map

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        return self.flow_map(t, t, x, context)
