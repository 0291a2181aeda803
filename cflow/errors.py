"""The errors of cflow, and the checks that raise them: where, expected, got, mend.

Every error is a `CflowError` and a built-in `ValueError` (bad input) or `RuntimeError` (something
went wrong on the way), so both kinds of `except` work.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = [
    "CflowError",
    "CheckpointError",
    "DataError",
    "DomainError",
    "MissingExtraError",
    "ShapeError",
    "SolverError",
    "TrainingError",
    "expect_finite",
    "expect_floating",
    "expect_integers",
    "expect_positive",
    "expect_tokens",
    "expect_trailing",
    "expect_unit_times",
    "known",
    "plain",
    "transformed",
]


class CflowError(Exception):
    """Any error raised on purpose by cflow."""


class ShapeError(CflowError, ValueError):
    """A tensor has the wrong shape."""


class DomainError(CflowError, ValueError):
    """A value, dtype or option lies outside what the callee accepts."""


class SolverError(CflowError, RuntimeError):
    """A numerical solve did not reach its end."""


class TrainingError(CflowError, RuntimeError):
    """A training cannot go on."""


class CheckpointError(CflowError, RuntimeError):
    """A file of weights or a checkpoint cannot be written, read, or used for this model."""


class DataError(CflowError, RuntimeError):
    """A file of data is damaged, or cannot be fetched."""


class MissingExtraError(CflowError, RuntimeError):
    """An optional package is needed and not installed."""


def expect_trailing(where: str, name: str, x: Tensor, shape: Iterable[int]) -> None:
    """Raise `ShapeError` unless the trailing axes of x are `shape`."""
    shape = tuple(shape)
    if x.dim() < len(shape) or tuple(x.shape[x.dim() - len(shape) :]) != shape:
        raise ShapeError(
            f"{where}: {name} must end in shape {shape}, got {tuple(x.shape)}; "
            f"leading axes are batch axes, the trailing {len(shape)} belong to one point"
        )


def expect_floating(where: str, x: Tensor) -> None:
    """Raise `DomainError` for integer points."""
    if not x.is_floating_point():
        raise DomainError(
            f"{where}: points must be floating, got {x.dtype}; call x.float() if the values are "
            "continuous, or end the chain with Dequantize(levels) if they are counts or grey levels"
        )


def expect_positive(where: str, **values: float | int) -> None:
    """Raise `DomainError` unless each named value is a finite number above zero."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise DomainError(f"{where}: {name} must be positive and finite, got {value!r}")


def expect_unit_times(where: str, t: Tensor) -> None:
    """Raise `DomainError` unless all times lie in [0, 1]; silent inside a traced graph."""
    if torch.compiler.is_compiling():
        return
    if not t.numel():
        return
    low, high = torch.aminmax(t.detach())  # both NaN where one time is
    if not (low.item() >= 0 and high.item() <= 1):
        outside = ~((t >= 0) & (t <= 1))
        raise DomainError(
            f"{where}: times must lie in [0, 1] (0 = base, 1 = data), got {t[outside][0].item():g}"
        )


def expect_integers(where: str, x: Tensor) -> None:
    """Raise `DomainError` for tokens that are no integers."""
    if x.dtype == torch.bool or x.is_floating_point() or x.is_complex():
        raise DomainError(
            f"{where}: tokens must be integers, got {x.dtype}; encode symbols as 0, 1, .. and call "
            ".long()"
        )


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
    expect_integers(where, x)
    bad = (x < 0) | (x >= vocabulary)
    if not known(bad.any()):
        return
    position = tuple(bad.nonzero()[0].tolist())
    value = int(x[position])
    if masked and value == vocabulary:
        raise DomainError(
            f"{where}: data must not hold the mask, {value}, found at index {position} "
            f"({int(bad.sum())} of {bad.numel()} tokens are affected); fill or drop those tokens"
        )
    raise DomainError(
        f"{where}: tokens must lie between 0 and {vocabulary - 1}, got {value} at index {position} "
        f"({int(bad.sum())} of {bad.numel()} tokens are affected)"
    )


def expect_finite(where: str, name: str, x: Tensor) -> None:
    """Raise `DomainError` naming the first entry of x that is NaN or infinite."""
    if not x.is_floating_point() or bool(torch.isfinite(x).all()):
        return
    bad = torch.nonzero(~torch.isfinite(x))
    rows = torch.unique(bad[:, 0]).numel() if x.dim() else 1
    first = tuple(bad[0].tolist())
    raise DomainError(
        f"{where}: {name} must be finite, got {x[first].item()} at index {first} "
        f"({rows} of {len(x) if x.dim() else 1} rows are affected); drop or repair those rows"
    )


def known(flag: Tensor) -> bool | None:
    """Read a flag, or return None where values are not known: in a traced graph, under vmap."""
    if torch.compiler.is_compiling():
        return None
    try:
        return bool(flag)
    except RuntimeError:
        return None


def plain() -> bool:
    """Tell whether this is plain eager mode: neither inside `torch.func` nor in a traced graph.

    Example:
        >>> plain(), torch.func.vmap(lambda x: x + plain())(torch.zeros(1))
        (True, tensor([0.]))
    """
    return not torch.compiler.is_compiling() and not transformed()


def transformed() -> bool:
    """Tell whether this is inside `torch.func`, traced or not.

    Example:
        >>> transformed(), torch.func.vmap(lambda x: x + transformed())(torch.zeros(1))
        (False, tensor([1.]))
    """
    return torch._C._functorch.maybe_current_level() is not None  # type: ignore[attr-defined]


# A constant of a compiled graph, which is guarded by the transforms around it. This is what
# `torch.compiler.assume_constant_result` sets, after it has imported Dynamo, for half a second.
transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]
