"""The context that says nothing, which guidance goes away from."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from cflow.errors import DomainError, ShapeError

__all__ = ["Null", "null_like", "null_of", "null_tensor", "with_and_without"]

Null: TypeAlias = Tensor | float | int | None
"""For one sample: a class index, a number for each entry of a vector, a vector, a sequence."""

Asked: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def null_of(network: nn.Module) -> Tensor | float | int:
    """Return the context that says nothing to a network: what one of its parts says, or zeros.

    Example:
        >>> from cflow.field import MLPField, UNetField
        >>> null_of(UNetField((1, 4, 4), 10, width=8, heads=2)), null_of(MLPField(2, 3))
        (10, 0.0)
    """
    named = (getattr(module, "null", None) for module in network.modules())
    return next((null for null in named if null is not None), 0.0)


def null_tensor(null: Null) -> Tensor | None:
    """Return a null context as a buffer."""
    return None if null is None else torch.as_tensor(null)


def null_like(where: str, null: Tensor | None, t: Tensor, context: Tensor | None) -> Tensor | None:
    """Return the null context of each sample, or None where it is no context at all.

    Args:
        where: Name of the caller, for errors.
        null: That of one sample.
        t: Times `(*batch,)`.
        context: Conditions `(*batch, *context)`.

    Raises:
        DomainError: There is no context.
        ShapeError: The null context does not fit it.
    """
    if context is None:
        raise DomainError(
            f"{where}: there is no context to be guided towards; pass one, or use the model "
            "without guidance"
        )
    if null is None:
        return None
    null, one = null.to(context), context.shape[t.dim() :]
    if len(one) > 1 and null.dim() == len(one) and null.shape[1:] == one[1:]:
        return null.expand(*t.shape, *null.shape)  # a sequence may have a length of its own
    axes = zip(reversed(null.shape), reversed(one), strict=False)
    if null.dim() > len(one) or any(n not in (1, wanted) for n, wanted in axes):
        raise ShapeError(
            f"{where}: null must broadcast to one context {tuple(one)}, got {tuple(null.shape)}"
        )
    # added, not expanded: inductor takes a constant without axes for a number
    return torch.zeros_like(context) + null


def with_and_without(
    ask: Asked, t: Tensor, x: Tensor, context: Tensor | None, null: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Ask with the context and with the null one, at once where they have one shape."""
    if context is None or null is None or null.shape != context.shape:
        return ask(t, x, context), ask(t, x, null)
    join = torch.cat if t.dim() else torch.stack
    both = ask(join([t, t]), join([x, x]), join([context, null]))
    if not t.dim():
        return both[0], both[1]
    n = t.shape[0]  # chunk has no ONNX form for any batch
    return both[:n], both[n:]
