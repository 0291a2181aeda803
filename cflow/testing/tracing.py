"""Checks that the map goes through torch's transformations: vmap, jacrev, compile, export."""

import torch
from torch import Tensor, nn

from cflow.state import State, tracked
from cflow.testing.bench import Bench, Side, gap, ladj_of, start
from cflow.testing.report import Finding, judged, skipped
from cflow.transport import Transport

__all__ = ["compiles", "exports", "transformed"]


def transformed(bench: Bench) -> Finding:
    """Take |pull(y)|^2 + ladj through vmap and jacrev: the numbers of plain calls, in float64."""
    if not bench.demands.func or not bench.exact:
        return skipped("not asked for" if bench.exact else "the density draws noise")
    transport = bench.make()
    y, context = bench.side(transport, "data", 3)

    def energy(y: Tensor, context: Tensor | None) -> Tensor:
        state = transport.pull(tracked(y, event_dim=y.dim()), context)
        return state.x.square().sum() + ladj_of(state)

    points = y.clone().requires_grad_()
    state = transport.pull(start(points), context)
    expected = state.x.square().reshape(3, -1).sum(1) + ladj_of(state)
    (slope,) = torch.autograd.grad(expected.sum(), points)
    axes = (0, None if context is None else 0)
    value = torch.func.vmap(energy, in_dims=axes)(y, context)
    score = torch.func.vmap(torch.func.jacrev(energy), in_dims=axes)(y, context)
    scale = 1 + float(slope.abs().max())
    measured = max(gap(value, expected), gap(score, slope)) / scale
    bound = max(1e-9, bench.demands.round_trip)
    return judged(measured, bound, "vmap or jacrev gives other numbers")


def compiles(bench: Bench) -> Finding:
    """Compile push and pull as one graph each, by aot_eager: no generated code, seconds at most."""
    if not bench.demands.trace:
        return skipped("not asked for")
    transport, apart = bench.make(), []
    sides: tuple[Side, Side] = ("base", "data")
    for side in sides:
        method = transport.push if side == "base" else transport.pull
        torch.compiler.reset()
        x, context = bench.side(transport, side, 4)
        compiled = torch.compile(method, fullgraph=True, backend="aot_eager")
        apart.append(bench.apart(compiled(start(x), context), method(start(x), context)))
    bound = max(1e-9, bench.demands.round_trip)
    return judged(max(apart), bound, "the compiled map gives other numbers")


def exports(bench: Bench) -> Finding:
    """Export the push of points for any batch size, and run it at another one."""
    if not bench.demands.trace:
        return skipped("not asked for")
    x, context = bench.draw(4)
    module = _Push(bench.make())
    inputs = {"x": x} if context is None else {"x": x, "context": context}
    shapes = {name: {0: torch.export.Dim.DYNAMIC} for name in inputs}
    program = torch.export.export(module, (), inputs, dynamic_shapes=shapes).module()
    x, context = bench.draw(9)
    inputs = {"x": x} if context is None else {"x": x, "context": context}
    bound = max(1e-9, bench.demands.round_trip)
    return judged(
        gap(program(**inputs), module(**inputs)), bound, "the program gives other numbers"
    )


class _Push(nn.Module):
    """The push of points as a module, which is what export takes."""

    def __init__(self, transport: Transport) -> None:
        super().__init__()
        self.transport = transport

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.transport.push(State(x), context).x
