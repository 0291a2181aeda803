"""Checks of tokens, rates and bases: errors that name the position of what is wrong."""

import math

import torch
from torch import Tensor

from cflow.base import TokenBase
from cflow.errors import DomainError, ShapeError, known

__all__ = [
    "expect_finite_rates",
    "expect_flags",
    "expect_independent",
    "expect_numbers",
    "expect_rates",
]


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
        f"{where}: the rates of {int((~good).sum())} of {good.numel()} tokens are not finite at "
        f"t={when:g}, the first is at index {position} with values such as {values}; check the "
        "network"
    )


def expect_numbers(where: str, t: Tensor, terms: Tensor, batch: tuple[int, ...]) -> None:
    """Raise `DomainError` naming the first token whose term of a bound is not a number.

    An infinite one is: a model may think that what happened cannot be.

    Args:
        where: Name of the caller, for errors.
        t: Times of the rows, `(repeats * n,)`.
        terms: One for each token, `(repeats * n, *event)`.
        batch: Axes of the n points.
    """
    bad = terms.isnan()
    if not known(bad.any()):
        return
    row, *token = bad.nonzero()[0].tolist()
    place = torch.unravel_index(torch.tensor(row % max(1, math.prod(batch))), batch)
    position = (*(int(k) for k in place), *token)
    raise DomainError(
        f"{where}: rates are not numbers for {int(bad.sum())} of {bad.numel()} tokens on their way "
        f"to data, the first at index {position} at t={t[row].item():g}; check the network"
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


def expect_flags(where: str, name: str, flags: Tensor, tokens: Tensor) -> Tensor:
    """Return flags of tokens that stay, expanded to all tokens, or raise if they are none."""
    if flags.dtype != torch.bool:
        raise DomainError(
            f"{where}: {name} must be boolean, True where a token stays, got {flags.dtype}"
        )
    try:
        return flags.expand(tokens.shape)
    except RuntimeError as error:
        raise ShapeError(
            f"{where}: {name} must broadcast to the tokens {tuple(tokens.shape)}, got "
            f"{tuple(flags.shape)}"
        ) from error
