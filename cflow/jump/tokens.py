"""Checks of tokens, rates and bases: errors that name the position of what is wrong."""

import torch
from torch import Tensor

from cflow.base import TokenBase
from cflow.errors import DomainError, expect_trailing

__all__ = ["expect_finite_rates", "expect_independent", "expect_rates", "expect_tokens"]


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


def expect_finite_rates(
    where: str, t: float | Tensor, rates: Tensor, flagged: Tensor | None = None, *, first: int = 0
) -> None:
    """Raise `DomainError` naming the first token whose rates or logits are not numbers.

    Minus infinity is the logarithm of nothing, and passes; a token needs one value that is more.

    Args:
        where: Name of the caller, for errors.
        t: The time, or one for each row of flagged tokens.
        rates: One row for each token, `(*tokens, values)`.
        flagged: Where there are rows for flagged tokens only, `(k, values)`, the flags.
        first: Number of the first row among those of flagged tokens.
    """
    good = torch.isfinite(rates.amax(-1))  # NaN and plus infinity win every maximum
    if bool(good.all()):
        return
    index = (~good).nonzero()[0]
    position = tuple((index if flagged is None else flagged.nonzero()[first + index[0]]).tolist())
    when = t[index[0]].item() if isinstance(t, Tensor) else t
    values = rates[tuple(index.tolist())].unique().tolist()[-3:]
    raise DomainError(
        f"{where}: the rates of {int((~good).sum())} tokens are not finite at t={when:g}, the "
        f"first is at index {position} with values such as {values}; check the network"
    )


def expect_rates(where: str, t: float, rates: Tensor) -> None:
    """Raise `DomainError` naming the first token whose rates are negative or not finite."""
    expect_finite_rates(where, t, rates)
    least = rates.amin(-1)
    if bool((least >= 0).all()):
        return
    position = tuple((least < 0).nonzero()[0].tolist())
    raise DomainError(
        f"{where}: rates must be 0 or more, got {least[position].item():g} at t={t:g} for the "
        f"token at index {position}; its own value has rate 0, and not minus the sum"
    )


def expect_independent(where: str, base: TokenBase) -> None:
    """Raise `DomainError` unless tokens of the base can be drawn one by one."""
    if not base.independent:
        raise DomainError(
            f"{where}: tokens of the base must be independent, got {type(base).__name__}; take "
            "Categorical(event_shape, base.marginals()) or another base"
        )
