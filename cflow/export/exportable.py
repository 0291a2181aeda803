"""What can be exported: a plain module with one input, a condition where there is one, one output.

    sampler:  noise -> samples          encoder:  points -> noise          log_prob:  points -> nats

Every step of it has to be known beforehand, and nothing may be drawn at random on the way.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Generator, Tensor, nn

from cflow.errors import DomainError, ShapeError, expect_trailing
from cflow.flow import Flow
from cflow.jump import JumpFlow

__all__ = ["Exportable", "Kind"]

Kind: TypeAlias = Literal["sampler", "encoder", "log_prob"]


class Exportable(nn.Module, ABC):
    """Say what goes into a module and what comes out; authors write `forward`, `draw` and `facts`.

    Args:
        flow: What it is made of.
        context: One condition that is built in, `context_shape`; the module then takes none.

    Attributes:
        in_shape: Shape of one input.
        context_shape: Shape of one condition that the module takes, or None.
        dtype: Of its floating inputs.

    Raises:
        DomainError: A context is to be built into a flow that takes none.
        ShapeError: It has another shape.
    """

    kind: ClassVar[Kind]
    input_name: ClassVar[str]
    output_name: ClassVar[str]
    in_shape: tuple[int, ...]

    def __init__(self, flow: Flow | JumpFlow, context: Tensor | None) -> None:
        super().__init__()
        self.dtype = next((p.dtype for p in flow.parameters()), torch.get_default_dtype())
        self.context_shape = flow.context_shape if context is None else None
        self.fixed: Tensor | None
        self.register_buffer("fixed", _fixed(type(self).__name__, flow, context))

    @abstractmethod
    def draw(self, n: int, context: Tensor | None, generator: Generator) -> Tensor:
        """Draw inputs to trace and compare with, `(n, *in_shape)`."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what a file has to say of the flow in it, as JSON can hold it."""

    def _enter(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Check the input, and give every row the condition that is built in."""
        expect_trailing(type(self).__name__, self.input_name, x, self.in_shape)
        if self.fixed is None:
            return x, context
        batch = x.shape[: x.dim() - len(self.in_shape)]
        return x, self.fixed.expand(*batch, *self.fixed.shape)


def _fixed(where: str, flow: Flow | JumpFlow, context: Tensor | None) -> Tensor | None:
    if context is None:
        return None
    if flow.context_shape is None:
        raise DomainError(f"{where}: this flow is unconditional, so no context can be built in")
    if tuple(context.shape) != flow.context_shape:
        raise ShapeError(
            f"{where}: the context that is built in is one condition of shape "
            f"{flow.context_shape}, got {tuple(context.shape)}"
        )
    return context.detach().clone()
