"""Gradients through the inverse of a triangular map, by the implicit function theorem.

    f(x, w) = y,    J = df/dx:    dx/dy = J^-1,    dx/dw = -J^-1 df/dw

A backward pass solves J^T a = dL/dx; then dL/dy = a and dL/dw = -a df/dw, whatever w is, weights or
context. J is the diagonal of slopes plus a strictly triangular, hence nilpotent, rest: the solve is
a substitution, not an iteration that has to converge.

Source: Krantz and Parks (2013), The implicit function theorem, chapter 3; for fixed points of
networks Bai, Kolter and Koltun (2019), Deep equilibrium models, arXiv 1909.01377, theorem 1.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cflow.transport.incremental import solve_transposed
from cflow.transport.inversion import Triangular
from cflow.transport.univariate import in_full_precision

__all__ = ["attach", "substitute"]


def attach(system: Triangular, x: Tensor, y: Tensor, context: Tensor | None) -> Tensor:
    """Return x, which solves push(x, context) = y, with gradients to y, context and parameters."""
    residual = y - system.push(x.detach(), context)[0]  # zero up to rounding; carries the gradients
    detached = None if context is None else context.detach()
    return _Solution.apply(residual, x, system, detached)  # type: ignore[return-value]


class _Solution(torch.autograd.Function):
    """Return x as it is; as a function of the residual its derivative is J^-1."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        residual: Tensor,
        x: Tensor,
        system: Triangular,
        context: Tensor | None,
    ) -> Tensor:
        ctx.system = system
        ctx.save_for_backward(x, context)
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any,  # noqa: ANN401
        *grads: Tensor,
    ) -> tuple[Tensor | None, ...]:
        x, context = ctx.saved_tensors
        solve = substitute if ctx.system.net is None else solve_transposed
        return solve(ctx.system, x, context, grads[0]), None, None, None


def substitute(system: Triangular, x: Tensor, context: Tensor | None, grad: Tensor) -> Tensor:
    """Solve J^T a = grad by sweeps a <- (grad - L^T a) / diagonal, for any conditioner.

    The error is zero after as many sweeps as the graph has levels; they end earlier where rounding
    hides it in every sample.
    """
    with torch.enable_grad():
        own, read = x.detach().requires_grad_(), x.detach().requires_grad_()
        y = in_full_precision(system.univariate.push, own, system.steer(read, context))[0]
        (slope,) = torch.autograd.grad(y.sum(), own, retain_graph=True)
        a = grad / slope
        for _ in range(system.levels - 1):
            (pushed,) = torch.autograd.grad(y, read, a, retain_graph=True, allow_unused=True)
            if pushed is None:  # no feature reads another
                break
            last, a = a, (grad - pushed) / slope
            size = a.abs().amax(-1, keepdim=True)
            if bool(((a - last).abs() <= torch.finfo(a.dtype).eps * size).all()):
                break
    return a.detach()
