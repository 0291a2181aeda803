"""A copy of a module whose weights take half the bytes, and what that costs.

    w' = bfloat16(w),    the arithmetic stays in the dtype of the input

Weights are stored in the lower precision and cast back where they are used, so files of every
format halve, and no kernel has to know bfloat16.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from cflow.errors import DomainError
from cflow.export.exportable import Exportable
from cflow.export.parity import evaluating, examples
from cflow.export.token_sampler import TokenSampler
from cflow.metrics import sliced_wasserstein

__all__ = ["QualityLoss", "low_precision"]


@dataclass(frozen=True)
class QualityLoss:
    """Say what a lower precision costs, on the same inputs in both.

    Attributes:
        relative: Root mean squared difference of the outputs, over the outputs' spread about their
            mean.
        distance: Sliced Wasserstein-2 distance between the two sets of outputs, in their units.
        floor: That distance between two independent sets of outputs in full precision: below it
            nothing can be seen in samples of this size.
    """

    relative: float
    distance: float
    floor: float

    def __str__(self) -> str:
        return (
            f"outputs differ by {self.relative:.2g} of their spread, distance {self.distance:.2g} "
            f"beside {self.floor:.2g} between two samples"
        )


class Stored(nn.Module):
    """Store a tensor in one dtype and give it in another."""

    def __init__(self, stored: torch.dtype, used: torch.dtype) -> None:
        super().__init__()
        self.stored, self.used = stored, used

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.used)

    def right_inverse(self, x: Tensor) -> tuple[Tensor]:
        """Return what is stored; as a tuple, which may have another dtype."""
        return (x.to(self.stored),)


def low_precision(
    module: Exportable,
    dtype: torch.dtype = torch.bfloat16,
    *,
    inputs: Tensor | None = None,
    context: Tensor | None = None,
    n: int = 1024,
    seed: int = 0,
) -> tuple[Exportable, QualityLoss]:
    """Return a copy with its weights in lower precision, and what is lost by it.

    Buffers stay as they are. Exporters take the copy as they take the module.

    Args:
        module: A `Sampler`, `Encoder` or `LogProb`; it stays as it is.
        dtype: In which weights are stored: bfloat16, or float16.
        inputs: Noise, or points, to compare with, `(n, *in_shape)`; drawn where none are given.
        context: Conditions to compare with, taken in turn, as for `export_pt2`.
        n: Inputs to draw, at least 2.
        seed: Of what is drawn.

    Raises:
        DomainError: The dtype is not a lower one, there are fewer than two inputs, or the module
            gives tokens, which have neither spread nor distance.

    Example:
        >>> from cflow import recipes
        >>> from cflow.export import Sampler
        >>> small, loss = low_precision(Sampler(recipes.cnf(2).float(), steps=4))
        >>> loss.relative < 0.05
        True
    """
    if dtype not in (torch.bfloat16, torch.float16):
        raise DomainError(f"low_precision: dtype must be bfloat16 or float16, got {dtype}")
    if isinstance(module, TokenSampler):
        raise DomainError(
            "low_precision: tokens have no spread to compare with; cast the flow itself and hold "
            "its elbo against that of the other"
        )
    n = n if inputs is None else len(inputs)
    if n < 2:
        raise DomainError(f"low_precision: two inputs or more are needed, got {n}")
    again = copy.deepcopy(module)
    for part in list(again.modules()):
        for name, weight in list(part.named_parameters(recurse=False)):
            if weight.is_floating_point() and weight.dtype != dtype:
                step = Stored(dtype, weight.dtype)
                parametrize.register_parametrization(part, name, step, unsafe=True)
    given = examples(module, n, context, seed=seed)
    if inputs is not None:
        given[module.input_name] = inputs
    with evaluating(module):
        full, other = module(**given), module(**examples(module, n, context, seed=seed + 1))
    with evaluating(again):
        low = again(**given)
    return again, _loss(full, low, other)


def _loss(full: Tensor, low: Tensor, other: Tensor) -> QualityLoss:
    a, b, c = (x.double().reshape(len(x), -1) for x in (full, low, other))
    spread = (a - a.mean(0)).square().mean().sqrt()
    apart = lambda x, y: sliced_wasserstein(x, y, generator=Generator().manual_seed(0)).item()
    relative = ((a - b).square().mean().sqrt() / spread.clamp_min(1e-30)).item()
    return QualityLoss(relative, apart(a, b), apart(a, c))
