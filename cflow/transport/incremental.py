"""Inversion of an autoregressive map in which every hidden unit is computed once.

Units of a `MaskedMLP` are sorted by level: those of level d see features of depth below d only.
Step d computes the units of level d, layer by layer, from them the parameters of the features of
depth d, and these features. The whole inversion then costs the products of one pass. As products
of a few rows are bound by memory, levels go in blocks: all that earlier blocks contribute to the
units of a block comes from one product per layer, the steps inside add what the block itself holds.

    block:  z[B] = W[B, <B] h[<B] + b,    step d in B:  z[d] += W[d, B <= d] h[B <= d]

`solve_transposed` runs the same steps backward, to solve J^T a = b for the Jacobian J of the map.
Everything is held as (units, samples), so that a block of units is one contiguous piece.

Source: the cache of partial products is that of Ramachandran et al. (2017), Fast generation for
convolutional autoregressive models, arXiv 1704.06001, in a network of full width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from cflow.errors import ShapeError, expect_positive
from cflow.nets import MaskedMLP
from cflow.transport.inversion import Inversion, Triangular, unrolled
from cflow.transport.univariate import in_full_precision

__all__ = ["Incremental", "solve_transposed"]

_UNITS = 48  # of the widest layer in a block; see experiments/benchmarks/layers/sampling.py


@dataclass(frozen=True)
class Incremental(Inversion):
    """Compute every hidden unit once, level by level, in blocks.

    Exact. Conditioners other than `MaskedMLP`, and maps that differ from feature to feature, go
    through one full pass for each level instead.

    Attributes:
        block: Levels in a block; None for as many as hold about 48 units of the widest layer.

    Example:
        >>> Incremental().block is None
        True
    """

    block: int | None = None

    def __post_init__(self) -> None:
        if self.block is not None:
            expect_positive("Incremental", block=self.block)

    def check(self, levels: int) -> None:
        """Any graph will do."""

    def solve(self, system: Triangular, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if system.net is None or not _same_for_all(system, y):
            return unrolled(system, y, context)
        plan = _Plan(system.net, context)
        return _invert(system, plan, y, self.block or plan.block)


class _Plan:
    """Hold a network's weights in use, sorted by level, and where each level ends."""

    def __init__(self, net: MaskedMLP, context: Tensor | None) -> None:
        self.net, layers = net, net.layers()
        self.joins = [net.joins(k) for k in range(len(layers) - 1)]
        device, self.dtype = net.last.weight.device, net.last.weight.dtype
        depth, each = torch.tensor(net.depth), net.parameters_each
        self.levels = int(depth.max()) + 1
        widest = max(layer.out_features for layer in layers[:-1] or layers)
        self.block = max(1, min(self.levels, _UNITS * self.levels // widest))
        self.rank = depth.argsort(stable=True).to(device)
        rows = (self.rank[:, None] * each + torch.arange(each, device=device)).flatten()
        # ends[k][d + 1]: how many inputs (k = 0), or outputs of layer k - 1, have level d at most.
        self.ends = [_ends(depth, self.levels), *(_ends(u, self.levels) for u in net.levels)]
        self.ends.append([each * end for end in self.ends[0]])
        self.weights, self.biases = [], []
        for layer in layers:
            weight, bias = layer.masked(), layer.bias[:, None]
            inner = weight.shape[1] - net.context
            if context is not None:
                bias = torch.addmm(bias, weight[:, inner:], context.to(self.dtype).T)
            weight = weight[:, :inner]
            if layer is layers[0]:
                weight = weight.index_select(1, self.rank)
            if layer is layers[-1]:
                weight, bias = weight.index_select(0, rows), bias.index_select(0, rows)
            self.weights.append(weight)
            self.biases.append(bias)

    def sorted(self, rows: Tensor) -> Tensor:
        """Turn `(rows, D)` into `(D, rows)`, features by depth."""
        return rows.T.contiguous().index_select(0, self.rank)

    def unsorted(self, columns: Tensor) -> Tensor:
        """Undo `sorted`."""
        return columns.index_select(0, self.rank.argsort()).T.contiguous()


def _invert(system: Triangular, plan: _Plan, y: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Return x and log|dx_i/dy_i|, `(rows, D)` each.

    A step multiplies by all that its block holds: what it must not see yet has a weight of zero.
    """
    net, ends, weights = plan.net, plan.ends, plan.weights
    last, count, each = len(weights) - 1, len(y), net.parameters_each
    activate = _in_place(net.activation)
    wide = torch.promote_types(torch.promote_types(y.dtype, plan.dtype), torch.float32)
    pull = system.univariate.pull
    if not y.dtype == plan.dtype == wide:
        pull = partial(in_full_precision, pull)
    target = plan.sorted(y)
    x = torch.zeros_like(target)
    slopes: list[Tensor] = []
    read = x if x.dtype == plan.dtype else x.to(plan.dtype)
    held = [read, *(read.new_empty(len(w), count) for w in weights[:-1])]
    for first in range(0, plan.levels, block):
        stop = min(first + block, plan.levels)
        theta = read.new_empty(ends[-1][stop] - ends[-1][first], count)
        products: list[list[tuple[Tensor, Tensor, Tensor]]] = []
        for k, weight in enumerate(weights):
            known, new = ends[k][first], ends[k][stop]
            a, b = ends[k + 1][first], ends[k + 1][stop]
            out = theta if k == last else held[k + 1][a:b]
            if known:
                torch.addmm(plan.biases[k][a:b], weight[a:b, :known], held[k][:known], out=out)
            else:
                out.copy_(plan.biases[k][a:b].expand_as(out))
            sizes = _sizes(ends[k + 1], first, stop)
            rows, pieces = weight[a:b, known:new].split(sizes), out.split(sizes)
            inside = held[k][known:new]
            products.append([(out, row, inside) for out, row in zip(pieces, rows, strict=True)])
        sizes = _sizes(ends[0], first, stop)
        a, b = ends[0][first], ends[0][stop]
        steering = theta.view(b - a, each, count).transpose(1, 2)
        parts = [part.split(sizes) for part in (target[a:b], x[a:b], read[a:b], steering)]
        for step, (wanted, found, seen, steer) in enumerate(zip(*parts, strict=True)):
            for k, product in enumerate(products[:last]):
                out, row, inside = product[step]
                if len(row):
                    out.addmm_(row, inside)
                    activate(out)
                    if plan.joins[k]:
                        out += products[k - 1][step][0]
            out, row, inside = products[last][step]
            out.addmm_(row, inside)
            moved, steep = pull(wanted, steer)
            found.copy_(moved)
            slopes.append(steep)
            if read is not x:
                seen.copy_(found)
    return plan.unsorted(x), plan.unsorted(torch.cat(slopes))


def _sizes(ends: list[int], first: int, stop: int) -> list[int]:
    return [ends[level + 1] - ends[level] for level in range(first, stop)]


@torch.no_grad()
def solve_transposed(system: Triangular, x: Tensor, context: Tensor | None, grad: Tensor) -> Tensor:
    """Solve J^T a = grad for J = d push / dx at x, through the levels from the last to the first.

    Args:
        system: The map; its conditioner must be a `MaskedMLP`.
        x: Where the Jacobian is taken, `(rows, D)`.
        context: Condition `(rows, context)`.
        grad: The right-hand side, `(rows, D)`.

    Returns:
        The solution, `(rows, D)`.
    """
    plan = _Plan(system.net, context)  # type: ignore[arg-type]
    slope, steering, gains = _local_slopes(system, plan, x)
    net, ends, weights = plan.net, plan.ends, plan.weights
    last, each = len(weights) - 1, net.parameters_each
    wanted = plan.sorted(grad).to(slope.dtype)
    a = torch.empty_like(wanted)
    # pulled[k]: gradient that has reached input k of the chain; sent[k]: that of layer k's product.
    pulled = [wanted.new_zeros(w.shape[1], len(x), dtype=plan.dtype) for w in weights]
    sent = [wanted.new_empty(len(w), len(x), dtype=plan.dtype) for w in weights]
    for stop in range(plan.levels, 0, -plan.block):
        first = max(stop - plan.block, 0)
        for level in range(stop - 1, first - 1, -1):
            i, j = ends[0][level], ends[0][level + 1]
            a[i:j] = (wanted[i:j] - pulled[0][i:j]) / slope[i:j]
            steered = a[i:j, None] * steering[i:j]
            sent[last][each * i : each * j] = steered.flatten(0, 1)
            for k in range(last, -1, -1):
                if k == 0 and level == first:
                    break
                at = level if k else level - 1  # inputs, unlike units, are read one level later
                i, j = ends[k][at], ends[k][at + 1]
                c, d = ends[k + 1][level], ends[k + 1][stop]
                if i == j:
                    continue
                if c < d:
                    pulled[k][i:j].addmm_(weights[k][c:d, i:j].T, sent[k][c:d])
                if k:
                    torch.mul(pulled[k][i:j], gains[k - 1][i:j], out=sent[k - 1][i:j])
                    if plan.joins[k - 1]:
                        pulled[k - 1][i:j] += pulled[k][i:j]
        for k, weight in enumerate(weights):
            known, c, d = ends[k][first], ends[k + 1][first], ends[k + 1][stop]
            if known and c < d:
                pulled[k][:known].addmm_(weight[c:d, :known].T, sent[k][c:d])
    return plan.unsorted(a).to(grad.dtype)


def _local_slopes(
    system: Triangular, plan: _Plan, x: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return dg/dx (D, rows), dg/dtheta (D, parameters, rows), and each layer's activation'."""
    net, gains = plan.net, []
    h = plan.sorted(x).to(plan.dtype)
    for k, (weight, bias) in enumerate(zip(plan.weights[:-1], plan.biases, strict=False)):
        z = torch.addmm(bias, weight, h)
        with torch.enable_grad():
            z.requires_grad_()
            new = net.activation(z)
            gains.append(torch.autograd.grad(new.sum(), z)[0])
        h = h + new.detach() if plan.joins[k] else new.detach()
    theta = torch.addmm(plan.biases[-1], plan.weights[-1], h)
    back = plan.rank.argsort()
    theta = theta.unflatten(0, (-1, net.parameters_each))[back].permute(2, 0, 1)
    with torch.enable_grad():
        own, theta = x.detach().requires_grad_(), theta.detach().requires_grad_()
        y = in_full_precision(system.univariate.push, own, theta)[0]
        slope, steering = torch.autograd.grad(y.sum(), (own, theta))
    return plan.sorted(slope), steering.permute(1, 2, 0)[plan.rank].to(slope.dtype), gains


def _in_place(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], object]:
    if activation is functional.relu:
        return torch.relu_
    if activation is functional.silu:
        return lambda z: functional.silu(z, inplace=True)
    return lambda z: z.copy_(activation(z))


def _ends(levels: Tensor, count: int) -> list[int]:
    return [0, *torch.bincount(levels, minlength=count).cumsum(0).tolist()]


def _same_for_all(system: Triangular, y: Tensor) -> bool:
    """Say whether the map takes some features without the others."""
    try:
        system.univariate.pull(y.new_zeros(1, 1), y.new_zeros(1, 1, system.univariate.parameters))
    except ShapeError:
        return False
    return True
