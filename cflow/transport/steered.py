"""Learned constants of a layer, with what a network says of the context added to them."""

from collections.abc import Callable

from torch import Tensor

from cflow.errors import DomainError, ShapeError

__all__ = ["steered"]


def steered(
    where: str,
    constants: Tensor,
    conditioner: Callable[[Tensor], Tensor] | None,
    context: Tensor | None,
) -> Tensor:
    """Return constants `(n,)` as they are, or `(*batch, n)` with the conditioner's share added.

    Args:
        where: Name of the caller, for errors.
        constants: Learned numbers, one axis.
        conditioner: Called as `net(context)`; returns `(*batch, n)`.
        context: Condition `(*batch, *context)`.

    Raises:
        DomainError: The context is missing.
        ShapeError: The conditioner returns another number of parameters.
    """
    if conditioner is None:
        return constants
    if context is None:
        raise DomainError(
            f"{where}: the conditioner needs a context, got None; pass one, or build the layer "
            "without a conditioner"
        )
    given = conditioner(context)
    if given.shape[-1] != len(constants):
        raise ShapeError(
            f"{where}: the conditioner must return {len(constants)} numbers, got "
            f"{tuple(given.shape)}"
        )
    return constants + given
