"""The registry of bases on two features, away from their initialisation, and their integrals.

Heavy tails are integrated over u in (0, 1)^2 with x = tan(pi (u - 1/2)); laws on a box over the
box. A new law joins by one line.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cflow.base import (
    Base,
    ClassConditional,
    DiagonalGaussian,
    FullGaussian,
    Gaussian,
    GeneralisedGaussian,
    Mixture,
    Resampled,
    StudentT,
    Truncated,
    Uniform,
    tempered,
)


@dataclass(frozen=True)
class Law:
    """A base of two features, one condition of it, and what is true of its gradients.

    `box` is the support; without one it is the plane. `reparameterised` says that gradients through
    `sample` are right for every parameter whose name does not hold a word of `missing`.
    """

    name: str
    build: Callable[[], Base]
    context: Callable[[], Tensor] | None = None
    context_shape: tuple[int, ...] | None = None
    box: tuple[tuple[float, float], tuple[float, float]] | None = None
    reparameterised: bool = True
    missing: tuple[str, ...] = ()

    def make(self, seed: int = 0) -> Base:
        """Build the law with parameters perturbed, in evaluation mode."""
        torch.manual_seed(seed)
        base = self.build()
        for parameter in base.parameters():
            parameter.data.add_(0.3 * torch.randn(parameter.shape))
        if isinstance(base, Resampled):
            base.measure(200_000, chunk=200_000)
        return base.eval()

    def given(self, *batch: int) -> Tensor | None:
        """Return the condition of the law for a batch."""
        if self.context is None:
            return None
        one = self.context()
        return one.expand((*batch, *one.shape))

    def nodes(self, points: int) -> tuple[Tensor, Tensor]:
        """Return midpoints `(points, points, 2)` and their areas `(points, points)`."""
        u = (torch.arange(points) + 0.5) / points
        axes, widths = [], []
        for i in range(2):
            if self.box is None:
                x = torch.tan(math.pi * (u - 0.5))
                axes.append(x)
                widths.append(math.pi * (1 + x.square()) / points)
            else:
                low, high = self.box[i]
                axes.append(low + (high - low) * u)
                widths.append(torch.full_like(u, (high - low) / points))
        x = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
        return x, widths[0][:, None] * widths[1]

    def cells(self, x: Tensor, cells: int) -> Tensor:
        """Count points `(n, 2)` in the cells that `nodes` divides evenly, `(cells, cells)`."""
        places = []
        for i in range(2):
            if self.box is None:
                u = torch.atan(x[:, i]) / math.pi + 0.5
            else:
                low, high = self.box[i]
                u = (x[:, i] - low) / (high - low)
            places.append((u * cells).floor().long().clamp(0, cells - 1))
        counts = torch.bincount(places[0] * cells + places[1], minlength=cells * cells)
        return counts.reshape(cells, cells)


def net(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


def resampled(truncation: int) -> Callable[[], Base]:
    return lambda: Resampled(DiagonalGaussian(2), net(2, 1), truncation=truncation)


BOX = ((-0.5, 1.0), (-2.0, 2.0))
LOW, HIGH = (torch.tensor(ends, dtype=torch.float64) for ends in zip(*BOX, strict=True))


def condition() -> Tensor:
    return torch.tensor([0.5, -1.0, 2.0])


LAWS = [
    Law("Gaussian", lambda: Gaussian(2)),
    Law("DiagonalGaussian", lambda: DiagonalGaussian(2)),
    Law("DiagonalGaussian net", lambda: DiagonalGaussian(2, net(3, 4)), condition, (3,)),
    Law("FullGaussian", lambda: FullGaussian(2)),
    Law("ClassConditional", lambda: ClassConditional(3, 2), lambda: torch.tensor(2), ()),
    Law("StudentT", lambda: StudentT(2, degrees=torch.tensor([4.0, 2.5]))),
    Law("GeneralisedGaussian", lambda: GeneralisedGaussian(2, shape=1.4)),
    Law("Mixture", lambda: Mixture(3, 2), missing=("logits",)),
    Law("Uniform", lambda: Uniform(2, low=LOW, high=HIGH), box=BOX),
    Law("Resampled T=2", resampled(2), reparameterised=False),
    Law("Resampled T=20", resampled(20), reparameterised=False),
    Law("Truncated Gaussian", lambda: Truncated(Gaussian(2), low=LOW, high=HIGH), box=BOX),
    Law("Truncated diagonal", lambda: Truncated(DiagonalGaussian(2), low=LOW, high=HIGH), box=BOX),
    Law(
        "Truncated classes",
        lambda: Truncated(ClassConditional(3, 2), low=LOW, high=HIGH),
        lambda: torch.tensor(1),
        (),
        box=BOX,
    ),
    Law(
        "Truncated uniform",
        lambda: Truncated(Uniform(2, low=-0.5, high=2.0), low=-3.0, high=1.0),
        box=((-0.5, 1.0), (-0.5, 1.0)),
    ),
    Law("tempered diagonal", lambda: tempered(DiagonalGaussian(2), 0.6)),
    Law("tempered full", lambda: tempered(FullGaussian(2), 1.5)),
    Law("tempered Student", lambda: tempered(StudentT(2), 0.5)),
    Law(
        "tempered classes",
        lambda: tempered(ClassConditional(3, 2), 0.7),
        lambda: torch.tensor(0),
        (),
    ),
]
