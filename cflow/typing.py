"""Shape names for public signatures, read by people and checked by the tests (jaxtyping).

`*batch` any leading axes, `event` the axes of one point; `Points` leaves both open because one
annotation cannot split two groups of unknown length.
"""

from typing import TypeAlias

from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = ["Batch", "Data", "Frame", "Points", "Times"]

Points: TypeAlias = Float[Tensor, "..."]
"""Floating points, `(*batch, *event)`."""

Data: TypeAlias = Shaped[Tensor, "..."]
"""Points as a user hands them in: floating, or integer where a dequantisation layer takes them."""

Batch: TypeAlias = Float[Tensor, "*batch"]
"""One floating number per sample, `(*batch,)`."""

Times: TypeAlias = Float[Tensor, "*batch"]
"""One time in [0, 1] per sample, `(*batch,)`."""

Frame: TypeAlias = tuple[Tensor, Tensor]
"""A basis of tangent spaces and the covectors dual to it, `(*batch, dim, *event)` each."""
