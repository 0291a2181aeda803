"""Tune the times and weights of few steps to one field, by the error at their end.

    x_{k+1} = x_0 + sum_{j <= k} w_kj v(t_j, x_j),      minimise E |x_n - x(1)|^2 over t and w

x(1) is where a fine solve takes the same start. A flow map gives its average velocities from t_j to
t_{j+1} in place of v. The field stays as it is: with four steps there are
13 numbers to find, so a few hundred starts suffice, and another few hundred tell how good it is.
Source: Shaul et al. (2024), Bespoke non-stationary solvers, arXiv 2403.01329, section 3 and
algorithm 2; Sabour et al. (2024), Align your steps, arXiv 2404.14507, for tuned times alone.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from cflow.ode import Solver, TimeGrid, Tuned

__all__ = ["Scheme", "Slope", "scheme_of", "tuned_scheme"]

ITERATIONS = 60  # of L-BFGS, each with a few evaluations of the loss

Slope: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""What a step adds up, `slope(t_k, t_{k+1}, x, context)`: a velocity at t_k, or an average."""


class Scheme(NamedTuple):
    """Hold times at which a field is asked, the first 0, and the weights of its answers.

    Attributes:
        times: Times `(n,)`, rising and below 1.
        weights: Lower triangle `(n, n)`; row k holds the weights of x_{k+1}.
    """

    times: Tensor
    weights: Tensor

    def solver(self) -> Tuned:
        """Return the solver with these times and weights."""
        rows = [row[: k + 1] for k, row in enumerate(self.weights.tolist())]
        return Tuned(weights=tuple(map(tuple, rows)), grid=TimeGrid((*self.times.tolist(), 1.0)))


def scheme_of(solver: Solver) -> Scheme | None:
    """Return what a fixed-step solver does from 0 to 1, or None where its times do not rise.

    A field that answers its k-th question by the k-th unit vector shows it: the state is then the
    list of weights.

    Example:
        >>> from cflow.ode import Midpoint
        >>> times, weights = scheme_of(Midpoint(1))
        >>> times.tolist(), weights.tolist()
        ([0.0, 0.5], [[0.5, 0.0], [0.0, 1.0]])
    """
    width = 64
    times: list[float] = []
    rows: list[Tensor] = []

    def recorded(t: Tensor, y: Tensor) -> Tensor:
        answer = torch.zeros_like(y)
        answer[0, len(times)] = 1.0
        times.append(t.item())
        rows.append(y[0])
        return answer

    end = solver.solve(recorded, torch.zeros(1, width, dtype=torch.float64), 0.0, 1.0).y[0]
    n = len(times)
    rising = all(b > a for a, b in zip(times, [*times[1:], 1.0], strict=True))
    if times[0] != 0.0 or not rising:
        return None
    weights = torch.stack([*rows[1:], end])[:, :n]
    return Scheme(torch.tensor(times, dtype=torch.float64), weights)


def tuned_scheme(
    slope: Slope,
    start: Scheme,
    x0: Tensor,
    x1: Tensor,
    context: Tensor | None = None,
    *,
    batch: int = 256,
) -> Scheme:
    """Return the scheme that takes x0 closest to x1, found by L-BFGS from a given one.

    Args:
        slope: The trained field, or flow map.
        start: Where the search starts.
        x0: Starts `(n, *event)`.
        x1: Where a fine solve takes them.
        context: Conditions `(n, *context)`.
        batch: Starts whose graph is kept at one time.
    """
    steps = len(start.times)
    gaps = torch.cat([start.times, start.times.new_ones(1)]).diff()
    logits = gaps.log().requires_grad_()
    weights = start.weights[*_triangle(steps)].clone().requires_grad_()

    def scheme() -> Scheme:
        times = logits.softmax(0).cumsum(0)[:-1]
        square = weights.new_zeros(steps, steps).index_put(_triangle(steps), weights)
        return Scheme(torch.cat([times.new_zeros(1), times]), square)

    def end(x: Tensor, c: Tensor | None) -> Tensor:
        times, w = (part.to(x.dtype) for part in scheme())
        ends = torch.cat([times, times.new_ones(1)])
        slopes: list[Tensor] = []
        now = x
        for k in range(steps):
            r, t = (ends[j].expand(len(x)) for j in (k, k + 1))
            slopes.append(slope(r, t, now, c))
            now = x + sum(w[k, j] * slopes[j] for j in range(k + 1))
        return now

    _minimise(end, [logits, weights], x0, x1, context, batch)
    return Scheme(*(part.detach() for part in scheme()))


def _triangle(steps: int) -> tuple[Tensor, Tensor]:
    rows, columns = torch.tril_indices(steps, steps)
    return rows, columns


def _minimise(
    end: Callable[[Tensor, Tensor | None], Tensor],
    parameters: list[Tensor],
    x0: Tensor,
    x1: Tensor,
    context: Tensor | None,
    batch: int,
) -> None:
    """Minimise the mean squared error at the end over float64 numbers, in place."""
    search = torch.optim.LBFGS(
        parameters,
        max_iter=ITERATIONS,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-10,
        tolerance_change=1e-10,
    )
    best: list[tuple[float, list[Tensor]]] = []

    def closure() -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        gradients = [torch.zeros_like(p) for p in parameters]
        for k in range(0, len(x0), batch):
            rows = slice(k, k + batch)
            c = None if context is None else context[rows]
            error = (end(x0[rows], c) - x1[rows]).square().sum() / x1.numel()
            for gradient, part in zip(
                gradients, torch.autograd.grad(error, parameters), strict=True
            ):
                gradient += part
            total += error.detach().cpu().double()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if not best or total.item() < best[0][0]:
            best[:] = [(total.item(), [p.detach().clone() for p in parameters])]
        return total

    with torch.enable_grad():
        search.step(closure)
    with torch.no_grad():
        for parameter, value in zip(parameters, best[0][1], strict=True):
            parameter.copy_(value)
