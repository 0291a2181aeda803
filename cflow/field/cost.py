"""Regularisers of a field: rates that an ODE integrates into `State.cost` in training.

    KineticEnergy:  w |v|^2 / 2          JacobianNorm:  w |dv/dx|_F^2

Both keep the paths of a field straight and its solves short. The Jacobian's norm rides on the
products e' J that the divergence has anyway: exact beside `Exact`, without bias beside
`Hutchinson`.
Source: Finlay et al. (2020), How to train your neural ODE: the world of Jacobian and kinetic
regularization, arXiv 2002.02798, equation 8.
"""

from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

from torch import Tensor

from cflow.errors import DomainError, expect_positive
from cflow.field.divergence import Rates

__all__ = ["Cost", "CostSum", "JacobianNorm", "KineticEnergy"]


@runtime_checkable
class Cost(Protocol):
    """Anything that turns a velocity and its derivatives into a non-negative rate `(batch,)`."""

    @property
    def frobenius(self) -> bool:
        """Whether `rates.frobenius` is needed."""
        ...

    def __call__(self, t: Tensor, x: Tensor, rates: Rates) -> Tensor:
        """Return the rate at which cost builds up per unit of time.

        Args:
            t: Times `(batch,)`.
            x: Points `(batch, *event)`.
            rates: Velocity and divergence there, and the Frobenius norm if it is needed.
        """
        ...


@dataclass(frozen=True)
class KineticEnergy:
    """Charge `weight` times the kinetic energy |v|^2 / 2, summed over the event.

    Attributes:
        weight: Factor, positive.

    References:
        Finlay et al. (2020), How to train your neural ODE, arXiv 2002.02798.

    Example:
        >>> import torch
        >>> rates = Rates(torch.tensor([[3.0, 4.0]]), torch.zeros(1))
        >>> KineticEnergy(2.0)(torch.zeros(1), torch.zeros(1, 2), rates)
        tensor([25.])
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        expect_positive("KineticEnergy", weight=self.weight)

    @property
    def frobenius(self) -> bool:
        return False

    def __call__(self, t: Tensor, x: Tensor, rates: Rates) -> Tensor:
        return 0.5 * self.weight * rates.v.square().flatten(t.dim()).sum(-1)


@dataclass(frozen=True)
class JacobianNorm:
    """Charge `weight` times the squared Frobenius norm of the field's Jacobian, |dv/dx|_F^2.

    Attributes:
        weight: Factor, positive.

    References:
        Finlay et al. (2020), How to train your neural ODE, arXiv 2002.02798.

    Example:
        >>> import torch
        >>> rates = Rates(torch.zeros(1, 2), torch.zeros(1), frobenius=torch.tensor([3.0]))
        >>> JacobianNorm(0.1)(torch.zeros(1), torch.zeros(1, 2), rates)
        tensor([0.3000])
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        expect_positive("JacobianNorm", weight=self.weight)

    @property
    def frobenius(self) -> bool:
        return True

    def __call__(self, t: Tensor, x: Tensor, rates: Rates) -> Tensor:
        return self.weight * cast(Tensor, rates.frobenius)


@dataclass(frozen=True)
class CostSum:
    """Charge the sum of several costs.

    Attributes:
        costs: The costs, at least one.

    Raises:
        DomainError: There is none, or an entry is no cost.

    Example:
        >>> CostSum((KineticEnergy(0.1), JacobianNorm(0.1))).frobenius
        True
    """

    costs: tuple[Cost, ...]

    def __post_init__(self) -> None:
        if not self.costs or not all(isinstance(cost, Cost) for cost in self.costs):
            raise DomainError(f"CostSum: needs one cost or more, got {self.costs!r}")

    @property
    def frobenius(self) -> bool:
        return any(cost.frobenius for cost in self.costs)

    def __call__(self, t: Tensor, x: Tensor, rates: Rates) -> Tensor:
        first, *others = (cost(t, x, rates) for cost in self.costs)
        return sum(others, first)
