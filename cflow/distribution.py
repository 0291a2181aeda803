"""A view of a flow as a `torch.distributions.Distribution`, for code that wants one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

if TYPE_CHECKING:
    from cflow.flow import Flow

__all__ = ["FlowDistribution"]


class FlowDistribution(Distribution):
    """Offer `sample`, `rsample` and `log_prob` of a flow at one batch of conditions.

    Made by `flow.at(context)`; the batch shape is that of the context.

    Args:
        flow: The flow.
        context: Conditions `(*batch, *context_shape)`, or None.
        batch_shape: Batch shape to expand to; that of the context by default.
    """

    has_rsample = True
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}  # type: ignore[assignment]

    def __init__(
        self, flow: "Flow", context: Tensor | None, *, batch_shape: Sequence[int] | None = None
    ) -> None:
        self.flow = flow
        self.context = context
        if batch_shape is None:
            given = len(flow.context_shape or ())
            batch_shape = () if context is None else context.shape[: context.dim() - given]
        shape, event_shape = torch.Size(batch_shape), torch.Size(flow.event_shape)
        super().__init__(shape, event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = tuple(sample_shape)
        if self.context is None:
            return self.flow.rsample((*shape, *self.batch_shape))
        return self.flow.rsample(shape, self._context())

    def log_prob(self, value: Tensor) -> Tensor:
        return self.flow.log_prob(value, self._context())

    def expand(self, batch_shape: Sequence[int]) -> "FlowDistribution":  # type: ignore[override]
        return FlowDistribution(self.flow, self.context, batch_shape=batch_shape)

    def _context(self) -> Tensor | None:
        if self.context is None:
            return None
        return self.context.expand(*self.batch_shape, *(self.flow.context_shape or ()))
