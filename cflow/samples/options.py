"""Checks of the options of samplers: counts and amounts, which may be zero."""

import math

from cflow.errors import DomainError

__all__ = ["expect_amount", "expect_count"]


def expect_amount(where: str, **values: float) -> None:
    """Raise `DomainError` unless each named value is finite and 0 or more."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise DomainError(f"{where}: {name} must be 0 or more and finite, got {value!r}")


def expect_count(where: str, *, least: int = 1, **values: int) -> None:
    """Raise `DomainError` unless each named value is a whole number of at least `least`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise DomainError(
                f"{where}: {name} must be a whole number of at least {least}, got {value!r}"
            )
