"""Step size control by sample: error norms, tolerances, the PI controller, the first step.

A step is accepted when the norm of error / (atol + rtol max(|y|, |y_next|)) is at most 1; the next
one is h * clip(0.9 e^-(1/k - 3b/4) e_before^b, 0.2, 10) with k one more than the order of the error
estimate. Everything here is plain numbers outside autograd: the gradient of a solve is that of
its accepted steps.
Source: Hairer, Norsett and Wanner (1993), II.4; Gustafsson (1991), Control theoretic techniques for
stepsize selection in explicit Runge-Kutta methods.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from cflow.errors import DomainError, ShapeError
from cflow.ode.problem import Problem
from cflow.ode.step import Step, advance, widths

__all__ = ["Norm", "PIController", "Tolerance", "error_size", "first_step", "rms_of_leaves"]

Norm: TypeAlias = Callable[[Sequence[Tensor]], Tensor]

Tolerance: TypeAlias = float | Tensor | Sequence[float | Tensor]
"""One number; a tensor that broadcasts against a point; or one of either for each leaf."""


def rms_of_leaves(ratios: Sequence[Tensor]) -> Tensor:
    """Measure scaled errors sample by sample: the largest root mean square over the leaves.

    Taking the largest leaf, not the mean over all entries, gives a tracked log-determinant the
    same say as the whole point, however many axes that has.

    Args:
        ratios: Error over tolerance, one tensor `(batch, ...)` for each leaf of the state.

    Returns:
        One norm per sample, `(batch,)`.

    Example:
        >>> rms_of_leaves([torch.tensor([[3.0, 4.0]]), torch.tensor([2.0])])
        tensor([3.5355])
    """
    norms = []
    for ratio in ratios:
        if ratio.dim() == 1:
            norms.append(ratio.abs())
        elif ratio.numel():
            flat = ratio if ratio.dim() == 2 else ratio.flatten(1)
            norms.append(torch.linalg.vector_norm(flat, dim=1) / math.sqrt(flat.shape[1]))
    return norms[0] if len(norms) == 1 else torch.stack(norms).amax(0)


@dataclass(frozen=True)
class PIController:
    """Choose the next step size from this error and the one before.

    Attributes:
        safety: Factor that aims below the tolerance.
        shrink: Smallest factor between two steps.
        grow: Largest factor.
        beta: Weight of the error before; 0 is the plain integral controller.

    Example:
        >>> PIController(beta=0.0).factor(np.array([1.0]), np.array([1.0]), 5).round(1)
        array([0.9])
    """

    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 10.0
    beta: float = 0.04

    def __post_init__(self) -> None:
        if not (0 < self.safety <= 1 and 0 < self.shrink < 1 < self.grow and 0 <= self.beta < 0.2):
            raise DomainError(
                "PIController: needs 0 < safety <= 1, 0 < shrink < 1 < grow and 0 <= beta < 0.2, "
                f"got {self}"
            )

    def factor(self, size: np.ndarray, before: np.ndarray, order: int) -> np.ndarray:
        """Return the factor on the step size for each sample.

        Factors are cut to multiples of 1/256, so that the last bits of an error, which depend on
        how a batch was summed, do not reach the step sizes.

        Args:
            size: Norms of the scaled errors, `(rows,)`; not finite where the step broke down.
            before: Those of the last accepted steps.
            order: One more than the order of the error estimate.
        """
        power = 1.0 / order - 0.75 * self.beta
        raw = self.safety * np.maximum(size, 1e-10) ** -power * before**self.beta
        cut = np.floor(raw * 256.0) / 256.0
        return np.minimum(np.fmax(cut, self.shrink), self.grow)  # fmax: NaN shrinks


@torch.no_grad()
def error_size(
    step: Step,
    h: list[Tensor],
    rtol: Sequence[float | Tensor],
    atol: Sequence[float | Tensor],
    norm: Norm,
) -> np.ndarray:
    """Return the norm of each sample's scaled error, NaN where its new state is not finite."""
    assert step.error is not None
    ratios, peaks = [], []
    for k, (error, a, b) in enumerate(zip(step.error, step.y, step.y_next, strict=True)):
        large = b.abs()
        scale = torch.maximum(a.abs(), large).mul_(rtol[k]).add_(atol[k])
        ratios.append((error * h[k]).div_(scale))
        peaks.append(numbers(large if b.dim() == 1 else large.flatten(1).amax(1)))
    size = numbers(norm(ratios))
    for peak in peaks:
        finite = np.isfinite(peak)
        if not finite.all():
            size = np.where(finite, size, np.nan)
    return size


def per_leaf(name: str, tolerance: Tolerance, leaves: Sequence[Tensor]) -> list[float | Tensor]:
    """Give each leaf its tolerance, a number or a tensor that broadcasts against one point."""
    if isinstance(tolerance, Sequence):
        if len(tolerance) < len(leaves):
            raise ShapeError(
                f"solve: {name} lists {len(tolerance)} tolerances for a state of {len(leaves)} "
                "leaves; give one number, or one entry for each leaf"
            )
        entries = list(tolerance)[: len(leaves)]
    else:
        entries = [tolerance] * len(leaves)
    out: list[float | Tensor] = []
    for entry, leaf in zip(entries, leaves, strict=True):
        if not isinstance(entry, Tensor):
            out.append(float(entry))
            continue
        tensor = torch.as_tensor(entry, dtype=leaf.dtype, device=leaf.device)
        try:
            torch.broadcast_to(tensor, leaf.shape[1:])
        except RuntimeError as error:
            raise ShapeError(
                f"solve: {name} of shape {tuple(tensor.shape)} does not broadcast against one "
                f"point of shape {tuple(leaf.shape[1:])}"
            ) from error
        out.append(tensor)
    return out


def check_tolerance(where: str, name: str, tolerance: Tolerance) -> None:
    """Raise `DomainError` unless every tolerance is positive; inf leaves a leaf uncontrolled."""
    entries = tolerance if isinstance(tolerance, Sequence) else [tolerance]
    for entry in entries:
        if not bool((torch.as_tensor(entry) > 0).all()):
            raise DomainError(
                f"{where}: {name} must be positive, got {tolerance!r}; an entry of inf leaves its "
                "leaf out of the error control"
            )


@torch.no_grad()
def first_step(
    problem: Problem,
    slope: list[Tensor],
    args: tuple[object, ...],
    t: np.ndarray,
    goal: np.ndarray,
    y: list[Tensor],
    rtol: Sequence[float | Tensor],
    atol: Sequence[float | Tensor],
    norm: Norm,
    order: int,
) -> np.ndarray:
    """Guess each sample's first step size with one more evaluation (Hairer et al., II.4).

    Returns:
        Signed step sizes, `(rows,)`, cut to six bits (see `PIController.factor`).
    """
    device, dtype = y[0].device, problem.time_dtype
    span = goal - t
    scale = [a + r * leaf.abs() for leaf, r, a in zip(y, rtol, atol, strict=True)]
    d0 = numbers(norm([leaf / s for leaf, s in zip(y, scale, strict=True)]))
    d1 = numbers(norm([k / s for k, s in zip(slope, scale, strict=True)]))
    with np.errstate(all="ignore"):
        guess = np.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
        guess = np.minimum(np.nan_to_num(guess, nan=1e-6, posinf=1.0), np.abs(span))
        h = torch.from_numpy(guess * np.sign(span)).to(dtype).to(device)
        times = torch.from_numpy(t + guess * np.sign(span)).to(dtype).to(device)
        probe = problem.f(times, advance(y, widths(h, y), ((0, 1.0),), [slope]), args)
        change = [(b - a) / s for a, b, s in zip(slope, probe, scale, strict=True)]
        worst = np.maximum(d1, numbers(norm(change)) / guess)
        step = np.where(
            worst <= 1e-15, np.maximum(1e-6, 1e-3 * guess), (0.01 / worst) ** (1.0 / order)
        )
        step = np.nan_to_num(np.minimum(100 * guess, step), nan=1e-6)
        mantissa, exponent = np.frexp(step)
    return np.ldexp(np.floor(mantissa * 64) / 64, exponent) * np.sign(span)


def numbers(x: Tensor) -> np.ndarray:
    """Bring one number for each sample to the host, in double precision."""
    return x.detach().cpu().double().numpy()
