"""Checks of tokens: errors that name the position of what is wrong."""

import torch
from torch import Tensor

from cflow.errors import DomainError, expect_trailing

__all__ = ["expect_finite_rates", "expect_tokens"]


def expect_tokens(
    where: str, x: Tensor, event_shape: tuple[int, ...], vocabulary: int, *, masked: bool = False
) -> None:
    """Raise unless x holds data tokens: integers from 0 to vocabulary - 1.

    Args:
        where: Name of the caller, for errors.
        x: Tokens `(*batch, *event_shape)`.
        event_shape: Shape of one point.
        vocabulary: How many values a token has.
        masked: Whether `vocabulary` itself is the mask, which data never holds.

    Raises:
        ShapeError: x does not end in the event's shape.
        DomainError: It is not of integers, or one is out of range.

    Example:
        >>> expect_tokens("page", torch.tensor([[0, 4]]), (2,), 5)
    """
    expect_trailing(where, "tokens", x, event_shape)
    if x.dtype == torch.bool or x.is_floating_point() or x.is_complex():
        raise DomainError(
            f"{where}: tokens must be integers, got {x.dtype}; encode symbols as 0 .. "
            f"{vocabulary - 1} and call .long()"
        )
    if torch.compiler.is_compiling():
        return
    bad = (x < 0) | (x >= vocabulary)
    if not bool(bad.any()):
        return
    position = tuple(bad.nonzero()[0].tolist())
    value = int(x[position])
    if masked and value == vocabulary:
        raise DomainError(
            f"{where}: data must not hold the mask, {value}, found at index {position} "
            f"({int(bad.sum())} tokens are affected); fill or drop those tokens"
        )
    raise DomainError(
        f"{where}: tokens must lie between 0 and {vocabulary - 1}, got {value} at index {position} "
        f"({int(bad.sum())} tokens are affected)"
    )


def expect_finite_rates(where: str, t: float, rates: Tensor) -> None:
    """Raise `DomainError` naming the first token whose rates or logits are not numbers.

    Minus infinity is the logarithm of nothing, and passes; a token needs one value that is more.
    """
    good = torch.isfinite(rates.amax(-1))  # NaN and plus infinity win every maximum
    if bool(good.all()):
        return
    position = tuple((~good).nonzero()[0].tolist())
    values = rates[position].unique().tolist()[-3:]
    raise DomainError(
        f"{where}: the rates of {int((~good).sum())} tokens are not finite at t={t:g}, the first "
        f"is at index {position} with values such as {values}; check the network"
    )
