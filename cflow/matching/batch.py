"""What every coupling asks of a batch before it looks at points, and how it draws numbers.

sum_i a_i = 1 (sources),    sum_j b_j = 1 (targets)
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError, expect_finite

__all__ = ["Masses", "expect_masses", "expect_points", "noise", "precise", "spelled", "weighing"]

Masses: TypeAlias = tuple[Tensor | None, Tensor | None]
"""Masses of the sources and of the targets, each summing to one; None is uniform."""

MASS_ERROR = 1e-5  # by which masses may miss one in sum: rounding, not a mistake


def expect_points(
    where: str, x0: Tensor, x1: Tensor, context: Tensor | None, source_context: Tensor | None
) -> None:
    """Raise `ShapeError` unless points share an event, and contexts are one for each point."""
    if x0.dim() < 1 or x1.dim() < 1 or x0.shape[1:] != x1.shape[1:]:
        raise ShapeError(
            f"{where}: source and target points need one batch axis and one event shape, got "
            f"{tuple(x0.shape)} and {tuple(x1.shape)}"
        )
    if not len(x0) or not len(x1):
        raise ShapeError(f"{where}: got {len(x0)} sources and {len(x1)} targets, none may be empty")
    for name, c, size, side in (
        ("context", context, len(x1), "targets"),
        ("source_context", source_context, len(x0), "sources"),
    ):
        if c is not None and (c.dim() < 1 or len(c) != size):
            raise ShapeError(
                f"{where}: {name} must hold one condition for each of the {size} {side}, got shape "
                f"{tuple(c.shape)}"
            )


def expect_masses(
    where: str,
    weights: Masses | None,
    x0: Tensor,
    x1: Tensor,
    sides: tuple[str, str] = ("sources", "targets"),
) -> Masses:
    """Return the masses in full precision, scaled to one; None where they are uniform.

    Raises:
        ShapeError: They are not one for each point.
        DomainError: One is negative or not finite, or they do not sum to one within 1e-5.
    """
    if weights is None:
        return None, None
    return (
        _mass(where, sides[0], weights[0], len(x0), x1.device),
        _mass(where, sides[1], weights[1], len(x1), x1.device),
    )


def spelled(mass: Tensor | None, size: int, device: torch.device) -> Tensor:
    """Write out uniform masses where none are given."""
    if mass is not None:
        return mass
    return torch.full((size,), 1 / size, dtype=precise(device), device=device)


def precise(device: torch.device) -> torch.dtype:
    """Return float64, in which plans are solved, or float32 where the device has nothing finer."""
    return torch.float32 if device.type == "mps" else torch.float64


def weighing(mass: Tensor, x1: Tensor) -> Tensor:
    """Return weights on the device of the targets and in their dtype, or floating for tokens.

    Example:
        >>> weighing(torch.tensor([0.5]), torch.tensor([[3]])).tolist()
        [0.5]
    """
    dtype = x1.dtype if x1.is_floating_point() else torch.get_default_dtype()
    return mass.to(x1.device, dtype)


def noise(
    draw: Callable[..., Tensor],
    size: int | tuple[int, ...],
    generator: Generator | None,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Call `torch.rand` or its like where the generator lives, and bring the result to a device.

    Example:
        >>> noise(torch.randperm, 1, torch.Generator().manual_seed(0), torch.device("cpu"))
        tensor([0])
    """
    place = device if generator is None else generator.device
    return draw(size, generator=generator, device=place, dtype=dtype).to(device)


def _mass(
    where: str, side: str, mass: Tensor | None, size: int, device: torch.device
) -> Tensor | None:
    if mass is None:
        return None
    if mass.shape != (size,):
        raise ShapeError(
            f"{where}: weights of the {size} {side} must have shape ({size},), got "
            f"{tuple(mass.shape)}"
        )
    expect_finite(where, f"weights of the {side}", mass)
    mass = mass.detach().to(device, precise(device))
    total = mass.sum()
    if bool((mass < 0).any()) or abs(total.item() - 1) > MASS_ERROR:
        raise DomainError(
            f"{where}: weights of the {side} must not be negative and must sum to one, got least "
            f"{mass.min().item():.4g} and sum {total.item():.6g}; divide them by their sum"
        )
    return mass / total
