"""Left-out conditions: what classifier-free guidance trains the unconditional field with.

    context_k -> null with probability p, for each sample by itself

Source: Ho and Salimans (2022), Classifier-free diffusion guidance, arXiv 2207.12598, algorithm 1.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError

__all__ = ["ContextDropout"]


@dataclass(frozen=True, eq=False)
class ContextDropout:
    """Replace the condition of some samples by a null condition.

    Attributes:
        probability: With which each sample loses its condition, in [0, 1].
        null: What stands for no condition: a number, or a tensor that broadcasts to one condition,
            which may be learned. For class labels one label more than there are classes, or -1, as
            the field expects; guidance hands the field the same.

    Raises:
        DomainError: The probability lies outside [0, 1].

    Example:
        >>> labels = torch.arange(3)
        >>> ContextDropout(1.0, null=-1).drop(labels)[0]
        tensor([-1, -1, -1])
    """

    probability: float
    null: Tensor | float | int = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise DomainError(
                f"ContextDropout: probability must lie in [0, 1], got {self.probability}"
            )

    def drop(self, context: Tensor, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return the conditions after dropping, and which samples lost theirs.

        Args:
            context: Conditions `(n, *context)`: labels, vectors, sequences.
            generator: Source of the randomness.

        Returns:
            Conditions of the same shape and dtype, a new tensor, and a mask `(n,)`.

        Raises:
            ShapeError: There is no batch axis, or null does not broadcast to one condition.
            DomainError: Null is no value of the dtype of the conditions.
        """
        if context.dim() < 1:
            raise ShapeError("ContextDropout: context needs a leading batch axis, got shape ()")
        null = torch.as_tensor(self.null, device=context.device)
        one = tuple(context.shape[1:])
        if null.dim() > len(one) or any(
            a not in (1, b) for a, b in zip(reversed(null.shape), reversed(one), strict=False)
        ):
            raise ShapeError(
                f"ContextDropout: null must broadcast to one condition of shape {one}, got "
                f"{tuple(null.shape)}"
            )
        cast = null.to(context.dtype)
        if not context.is_floating_point() and not bool((cast == null).all()):
            raise DomainError(
                f"ContextDropout: null {self.null} is no {context.dtype}, which the conditions "
                "are; give a label"
            )
        chance = torch.rand(len(context), device=context.device, generator=generator)
        dropped = chance < self.probability
        mask = dropped.reshape(-1, *(1,) * len(one))
        return torch.where(mask, cast, context), dropped
