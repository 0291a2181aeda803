"""Checks of what is saved: weights, statistics, and the flag that they have been set.

A layer that is set from data keeps its statistics in its state_dict, and with them the fact that
they are set. Where that flag is a plain attribute, a loaded model sets itself anew from the next
batch, and nobody notices.
"""

import copy

import torch
from torch import Tensor

from cflow.state import State
from cflow.testing.bench import Bench, Side, start
from cflow.testing.report import Finding, judged, skipped
from cflow.transport import DataDependent, Inverse, Transport, initialize

__all__ = ["initialised_once", "reloads"]


def reloads(bench: Bench) -> Finding:
    """Load the weights of one copy into another: the same numbers, to the last bit."""
    first, other, (x, context) = bench.make(0), bench.make(1), bench.draw(5)
    other.load_state_dict(first.state_dict())
    here, there = (bench.run(t, "base", start(x), context) for t in (first, other))
    return judged(bench.apart(here, there), 0.0, "the map is not the same after a state_dict")


def initialised_once(bench: Bench) -> Finding:
    """Initialise, save, load into an untrained copy, initialise both on other data: no change.

    Layers that `initialize` does not know may set themselves in their first pull in training mode,
    which is tried where there are no others and `demands.initialize` is the library's own.
    """
    for part in bench.transport.modules():
        if isinstance(part, Inverse) and any(isinstance(m, DataDependent) for m in part.modules()):
            return skipped("initialize does not reach into an Inverse")
    first, again = bench.make(None), bench.make(None)
    batches = [_data(bench, seed) for seed in (0, 1)]
    y = batches[0][0][:5]
    fresh = _outputs(bench, first, y)
    bench.demands.initialize(first, *batches[0])
    known = any(isinstance(part, DataDependent) for part in first.modules())
    alone = bench.demands.initialize is initialize and not known
    if alone:
        _pull_in_training(first, *batches[0])
    before = _outputs(bench, first, y)
    if _largest(bench, fresh, before) == 0:
        return skipped("nothing is set from data")
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    worst = _largest(bench, before, _outputs(bench, again, y))
    if worst > 0:
        return judged(worst, 0.0, "statistics are lost in a state_dict")
    for transport in (first, again):
        bench.demands.initialize(transport, *batches[1])
        if alone:
            _pull_in_training(transport, *batches[1])
    worst = _largest(bench, before, _outputs(bench, first, y))
    if worst > 0:
        return judged(worst, 0.0, "a second initialisation changes the map")
    worst = _largest(bench, before, _outputs(bench, again, y))
    wrong = "after loading, initialisation sets the statistics anew: the flag is not saved"
    return judged(worst, 0.0, wrong)


def _data(bench: Bench, seed: int) -> tuple[Tensor, Tensor | None]:
    """Draw data that the untrained map does not expect: by a map with other parameters."""
    x, context = bench.draw(64, seed=10 + seed)
    with torch.no_grad():
        return bench.run(bench.make(seed), "base", State(x), context).x, context


def _pull_in_training(transport: Transport, x: Tensor, context: Tensor | None) -> None:
    with torch.no_grad():
        transport.train().pull(start(x), context, generator=torch.Generator().manual_seed(0))
    transport.eval()


def _outputs(bench: Bench, transport: Transport, y: Tensor) -> list[State]:
    x, context = bench.draw(5)
    sides: tuple[Side, Side] = ("base", "data")
    return [
        bench.run(transport, side, start(points), context)
        for side, points in zip(sides, (x, y), strict=True)
    ]


def _largest(bench: Bench, a: list[State], b: list[State]) -> float:
    return max(bench.apart(s, t) for s, t in zip(a, b, strict=True))
