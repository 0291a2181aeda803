"""Regularisers of a field: rates that an ODE integrates into `State.cost` on tracked runs."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from cflow.errors import expect_positive

__all__ = ["Cost", "KineticEnergy"]


@runtime_checkable
class Cost(Protocol):
    """Anything that turns a velocity into a non-negative rate `(batch,)`."""

    def __call__(self, t: Tensor, x: Tensor, v: Tensor) -> Tensor:
        """Return the rate at which cost builds up per unit of time."""
        ...


@dataclass(frozen=True)
class KineticEnergy:
    """Charge `weight` times the squared speed, |v|^2 / 2 summed over the event.

    References:
        Finlay et al. (2020), How to train your neural ODE, arXiv 2002.02798.

    Example:
        >>> import torch
        >>> KineticEnergy(2.0)(torch.zeros(1), torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
        tensor([25.])
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        expect_positive("KineticEnergy", weight=self.weight)

    def __call__(self, t: Tensor, x: Tensor, v: Tensor) -> Tensor:
        return 0.5 * self.weight * v.square().flatten(t.dim()).sum(-1)
