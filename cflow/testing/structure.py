"""Checks of who depends on whom: the links of a graph, none lost and none too many.

A map whose Jacobian lacks links that its graph promises has a narrower density, and nothing else
shows it: round trips and log-determinants stay right. Strict inequalities between all layers of a
masked network turn a flow on two numbers into a product of two.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cflow.state import State
from cflow.testing.bench import Bench, Side
from cflow.testing.report import Finding, judged, skipped
from cflow.transport import AutoregressiveLayer, Inverse, Transport

__all__ = ["links_of_map", "links_of_networks"]

PRESENT = 1e-9
"""Share of the largest entry above which a derivative counts: masked ones are zero exactly."""

POINTS = 64
"""Points at any of which a link may show."""


def links_of_map(bench: Bench, adjacency: Tensor | None) -> Finding:
    """Compare the sparsity of the Jacobian with the adjacency.

    Where its diagonal is empty, it is a graph of who steers whom: entries depend on themselves too,
    and the other direction, filled along all paths of the graph, on all that can be reached.
    """
    transport, forward = bench.make(), "base"
    if adjacency is None:
        inner = transport
        while isinstance(inner, Inverse):
            inner, forward = inner.transport, "data" if forward == "base" else "base"
        if isinstance(inner, AutoregressiveLayer):
            adjacency = _adjacencies(inner).get("conditioner")
    if adjacency is None:
        return skipped("no adjacency is given")
    wanted = adjacency.bool().cpu()
    graph = not bool(wanted.diagonal().any())
    if graph:
        wanted = wanted | torch.eye(*wanted.shape, dtype=torch.bool)
    sides: tuple[Side, ...] = ("base", "data") if graph else ("base",)
    wrong: list[str] = []
    for side in sides:
        expected = wanted if side == forward else _reachable(wanted)
        found = _sparsity(bench, transport, side)
        if found.shape != expected.shape:
            message = f"the adjacency is {tuple(expected.shape)}, the Jacobian {tuple(found.shape)}"
            return Finding("", "failed", message=message)
        way = "push" if side == "base" else "pull"
        wrong += [f"{way}: {text}" for text in _differences(expected, found)]
    return judged(float(len(wrong)), 0.0, "; ".join(wrong))


def links_of_networks(bench: Bench) -> Finding:
    """Compare every network that has a buffer `adjacency` (outputs, inputs) with its Jacobian.

    The networks are met where they stand, with the inputs that the map gives them.
    """
    transport = bench.make()
    adjacencies = _adjacencies(transport)
    if not adjacencies:
        return skipped("no network has an adjacency")
    calls: dict[str, tuple[Any, ...]] = {}
    modules = dict(transport.named_modules())
    for name in adjacencies:

        def note(module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            if not torch.compiler.is_compiling():
                calls.setdefault(name, tuple(a.detach() if _tensor(a) else a for a in args))

        modules[name].register_forward_pre_hook(note)
    with torch.no_grad():
        sides: tuple[Side, Side] = ("base", "data")
        for side in sides:
            x, context = bench.side(transport, side, POINTS)
            bench.run(transport, side, State(x), context)
    wrong: list[str] = []
    for name, adjacency in adjacencies.items():
        if name not in calls:
            return skipped(f"{name} is never called")
        (x, *rest), network = calls[name], modules[name]
        # Wide inputs: a unit of ReLU that rests at every point would hide its links.
        wide = x + 10 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
        found = _present(
            torch.autograd.functional.jacobian(lambda z, f=network, r=rest: f(z, *r).sum(0), wide)
        )
        found = found.reshape(len(adjacency), -1, found.shape[-1]).any(1)
        wrong += [f"{name}: {text}" for text in _differences(adjacency.bool().cpu(), found)]
    return judged(float(len(wrong)), 0.0, "; ".join(wrong))


def _adjacencies(transport: Transport) -> dict[str, Tensor]:
    suffix = "adjacency"
    return {
        name.removesuffix(suffix).rstrip("."): value
        for name, value in transport.named_buffers()
        if name.split(".")[-1] == suffix and value.dim() == 2
    }


def _tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _sparsity(bench: Bench, transport: Transport, side: Side) -> Tensor:
    """Return which outputs depend on which inputs at any point, (outputs, inputs)."""
    x, context = bench.side(transport, side, POINTS)

    def move(z: Tensor) -> Tensor:  # samples are independent: a sum over them keeps all apart
        return bench.run(transport, side, State(z), context).x.flatten(1).sum(0)

    return _present(torch.autograd.functional.jacobian(move, x))


def _present(jacobian: Tensor) -> Tensor:
    """Reduce derivatives (outputs, batch, *event) to flags (outputs, inputs)."""
    size = jacobian.flatten(2).abs().amax(1)
    return (size > PRESENT * size.max()).cpu()


def _reachable(links: Tensor) -> Tensor:
    reach = links.double()
    for _ in range(len(links)):
        reach = ((reach @ links.double()) > 0).double()
    return reach.bool()


def _differences(wanted: Tensor, found: Tensor) -> list[str]:
    """Name links lost and links forbidden, six of each at most."""
    texts = []
    for word, entries in (("lost", wanted & ~found), ("forbidden", found & ~wanted)):
        links = [f"{i} <- {j}" for i, j in torch.nonzero(entries).tolist()]
        if links:
            more = f" and {len(links) - 6} more" if len(links) > 6 else ""
            texts.append(f"{word} links {', '.join(links[:6])}{more}")
    return texts
