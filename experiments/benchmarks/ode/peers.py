"""The peers, each called as its own documentation does: torchode and torchdiffeq.

torchode names its shapes with torchtyping, whose only release that installs beside our command
line does not import with torch 2.4 or newer; a stand-in for two names of annotations lets it load.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torchdiffeq
from torch import Tensor


class _Shape:
    """Stand for `torchtyping.TensorType`: an annotation that means nothing at run time."""

    def __class_getitem__(cls, item: Any) -> type["_Shape"]:
        return cls


def _import_torchode() -> Any:
    annotations = ModuleType("torchtyping")
    vars(annotations).update(TensorType=_Shape, is_float=None)
    sys.modules.setdefault("torchtyping", annotations)
    import torchode

    return torchode


torchode = _import_torchode()


class Torchode:
    """Solve by torchode's Dopri5 from t = 0, every sample with its own steps.

    Args:
        f: `f(t, y)` with t `(batch,)`.
        tolerance: Relative and absolute.
        step: Length of fixed steps; None for the integral controller.
    """

    def __init__(
        self, f: Callable[..., Tensor], tolerance: float, *, step: float | None = None
    ) -> None:
        term = torchode.ODETerm(f)
        control = (
            torchode.IntegralController(atol=tolerance, rtol=tolerance, term=term)
            if step is None
            else torchode.FixedStepController()
        )
        self.step = step
        self.solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), control)

    def __call__(self, y0: Tensor, t1: float) -> Any:
        start = torch.zeros(len(y0), dtype=y0.dtype)
        problem = torchode.InitialValueProblem(y0, start, torch.full_like(start, t1))
        dt0 = None if self.step is None else torch.full_like(start, self.step)
        return self.solver.solve(problem, dt0=dt0)


def torchdiffeq_dopri5(f: Callable[..., Tensor], y0: Tensor, t1: float, tolerance: float) -> Tensor:
    """Solve by torchdiffeq's dopri5 from t = 0, one step size for all samples."""
    t = torch.tensor([0.0, t1], dtype=y0.dtype)
    solved = torchdiffeq.odeint(f, y0, t, rtol=tolerance, atol=tolerance, method="dopri5")
    assert isinstance(solved, Tensor)
    return solved[-1]


def torchdiffeq_steps(calls: int) -> int:
    """Return the attempted steps of dopri5: two calls find the first step, then six a step."""
    assert (calls - 2) % 6 == 0
    return (calls - 2) // 6
