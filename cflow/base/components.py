"""A mixture of any laws, log p(x) = logsumexp_k(log w_k + log p_k(x))."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Generator, Tensor, nn

from cflow.base.base import Base
from cflow.base.entries import held, wide
from cflow.errors import DomainError, ShapeError, expect_finite
from cflow.typing import Batch, Points

__all__ = ["Components", "picked", "start_logits"]


class Components(Base):
    """A mixture of laws of one event shape, of any kinds, with learned weights.

    A draw picks a component, then a point of it. Gradients through `sample` reach what the
    components pass them to; towards the weights they are missing, because a pick has none.
    `log_prob` has gradients for all. A context goes to every component.

    Args:
        laws: The components.
        logits: Logarithms of the weights at the start, up to a constant; equal weights by default.
        learned: Whether the weights are parameters.

    Raises:
        DomainError: There is no component.
        ShapeError: Event shapes differ, or the number of logits is another.

    Example:
        >>> from cflow.base import VonMisesFisher
        >>> caps = [VonMisesFisher(3, mean=torch.eye(3)[i], concentration=9.0) for i in range(2)]
        >>> Components(caps).log_prob(torch.eye(3)).detach()
        tensor([-0.3337, -0.3337, -8.6407])
    """

    def __init__(
        self, laws: Sequence[Base], *, logits: Tensor | None = None, learned: bool = True
    ) -> None:
        if not laws:
            raise DomainError("Components: there must be one law at least, got none")
        super().__init__(laws[0].event_shape)
        shapes = [law.event_shape for law in laws]
        if len(set(shapes)) > 1:
            raise ShapeError(f"Components: laws must have one event shape, got {shapes}")
        self.laws = nn.ModuleList(laws)
        self.logits: Tensor
        held(self, "logits", start_logits("Components", logits, len(laws)), learned=learned)

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        total = math.prod(shape)
        pick = picked(self.logits, (total,), generator)
        rows = None if context is None else context.reshape(total, *context.shape[len(shape) :])
        parts, order = [], []
        for k in range(len(self.laws)):
            mine = (pick == k).nonzero().squeeze(-1)
            given = None if rows is None else rows[mine]
            parts.append(self._law(k).sample((len(mine),), given, generator=generator))
            order.append(mine)
        # each draw goes back to the place that picked its component
        x = torch.cat(parts)[torch.cat(order).argsort()]
        return x.reshape((*shape, *self.event_shape))

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        x = self._enter(x)
        each = [self._law(k).log_prob(x, context) for k in range(len(self.laws))]
        return torch.logsumexp(torch.stack(each, -1) + wide(self.logits).log_softmax(0), -1)

    def _law(self, k: int) -> Base:
        return cast(Base, self.laws[k])


def start_logits(where: str, logits: Tensor | None, components: int) -> Tensor:
    """Check logits of components, or return equal ones."""
    if logits is None:
        return torch.zeros(components)
    if logits.shape != (components,):
        raise ShapeError(
            f"{where}: logits must have shape {(components,)}, one for each component, got "
            f"{tuple(logits.shape)}"
        )
    expect_finite(where, "logits", logits)
    return logits


def picked(logits: Tensor, shape: tuple[int, ...], generator: Generator | None) -> Tensor:
    """Pick components by their weights, integers of a shape.

    Example:
        >>> picked(torch.tensor([-99.0, 0.0]), (3,), None)
        tensor([1, 1, 1])
    """
    steps = logits.detach().double().softmax(0).cumsum(0)
    u = torch.rand(shape, dtype=steps.dtype, device=steps.device, generator=generator)
    return torch.searchsorted(steps, u, right=True).clamp_max(len(steps) - 1)
