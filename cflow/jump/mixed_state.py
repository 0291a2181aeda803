"""States of tokens and points, and the checks of them."""

from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from cflow.base import Base, MeanFreeGaussian, TokenBase
from cflow.errors import (
    DomainError,
    ShapeError,
    expect_finite,
    expect_floating,
    expect_tokens,
    expect_trailing,
)
from cflow.manifold import expect_on

__all__ = ["Mixed", "Part", "batch_axes", "expect_condition", "expect_mixed"]

Part: TypeAlias = Literal["tokens", "points", "both"]


class Mixed(NamedTuple):
    """Hold the two parts of a state; a named tuple, hence a pytree everywhere in torch.

    Attributes:
        tokens: Integers `(*batch, *token_event)`, the elements of atoms say.
        x: Points `(*batch, *point_event)`, the places of atoms say.
    """

    tokens: Tensor
    x: Tensor


def expect_mixed(
    where: str,
    state: Mixed,
    base_tokens: TokenBase,
    base_points: Base,
    *,
    data: Part | None = None,
) -> None:
    """Raise unless both parts have one leading axis, the shapes of their bases, and good values.

    Args:
        where: Name of the caller, for errors.
        state: Tokens and points.
        base_tokens: The law of tokens at t = 0.
        base_points: The law of points at t = 0.
        data: The part that is data: tokens are then no masks, and points centred where clouds of
            the base are.

    Raises:
        ShapeError: Shapes disagree.
        DomainError: A token or a point is none of those that may be.
    """
    tokens, x = state
    final = data in ("tokens", "both")
    values = base_tokens.vocabulary if final else base_tokens.states
    masked = final and base_tokens.mask is not None
    expect_tokens(where, tokens, base_tokens.event_shape, values, masked=masked)
    expect_floating(where, x)
    expect_trailing(where, "points", x, base_points.event_shape)
    batch = [
        tuple(part.shape[: part.dim() - len(base.event_shape)])
        for part, base in ((tokens, base_tokens), (x, base_points))
    ]
    if batch[0] != batch[1] or len(batch[0]) != 1:
        raise ShapeError(
            f"{where}: tokens and points must share one leading batch axis, got tokens "
            f"{tuple(tokens.shape)} and points {tuple(x.shape)}"
        )
    expect_finite(where, "points", x)
    if data in ("points", "both") and isinstance(base_points, MeanFreeGaussian):
        expect_on(where, "points", base_points.manifold, x)


def expect_condition(
    where: str, context: Tensor | None, shape: tuple[int, ...] | None, n: int | None = None
) -> None:
    """Raise unless there is a condition where one is expected, for each of n states where given."""
    if (context is None) != (shape is None):
        raise DomainError(
            f"{where}: the flow {'takes no' if shape is None else 'needs a'} context, got "
            f"{None if context is None else tuple(context.shape)}"
        )
    if context is not None and n is not None and tuple(context.shape) != (n, *(shape or ())):
        raise ShapeError(
            f"{where}: expected one context for each state, {(n, *(shape or ()))}, got "
            f"{tuple(context.shape)}"
        )


def batch_axes(
    where: str,
    *,
    tokens: tuple[Tensor | None, tuple[int, ...]],
    points: tuple[Tensor | None, tuple[int, ...]],
    context: tuple[Tensor | None, tuple[int, ...]],
) -> tuple[int, ...]:
    """Return the batch axes that what is given has together; each comes with its own shape.

    Example:
        >>> none, x = (None, ()), torch.zeros(7, 3)
        >>> batch_axes("page", tokens=none, points=(x, (3,)), context=none)
        (7,)
    """
    axes = []
    for name, (part, own) in (("tokens", tokens), ("points", points), ("context", context)):
        if part is not None:
            expect_trailing(where, name, part, own)
            axes.append(tuple(part.shape[: part.dim() - len(own)]))
    try:
        return tuple(torch.broadcast_shapes(*axes))
    except RuntimeError as error:
        raise ShapeError(
            f"{where}: batch axes of a known part and of the context must broadcast, got {axes}"
        ) from error
