"""Checks of low precision and of inputs far out."""

from collections.abc import Iterator

import torch
from torch import nn

from cflow.testing.bench import Bench, Side, gap, ladj_of, start
from cflow.testing.report import Finding, judged, skipped
from cflow.transport import Transport

__all__ = ["far", "low_networks", "low_precision"]


def low_precision(bench: Bench, dtype: torch.dtype) -> Finding:
    """Run in a lower precision: points keep their dtype, ladj is float32, both near float64.

    float32 has 7 digits; of a thousand roundings, or of a solver's tolerance, 1e-3 remain. bfloat16
    has 2, in which a deep map may lose its way: there only finiteness is asked.
    """
    x, context = bench.draw(5)
    exact = bench.run(bench.make(), "base", start(x), context)
    if context is not None and not bench.classes:
        context = context.to(dtype)
    low = bench.run(bench.make().to(dtype), "base", start(x.to(dtype)), context)
    if low.x.dtype != dtype or ladj_of(low).dtype != torch.float32:
        message = f"points are {low.x.dtype} and ladj {ladj_of(low).dtype}, which must be float32"
        return Finding("", "failed", message=message)
    if not bool(low.x.isfinite().all() & ladj_of(low).isfinite().all()):
        return Finding("", "failed", message="points or ladj are not finite")
    if dtype != torch.float32:
        return Finding("", "passed")
    sizes = [exact.x, ladj_of(exact)] if bench.exact else [exact.x]
    scale = 1 + max(float(t.detach().abs().max()) for t in sizes)
    bound = max(1e-3, 10 * bench.demands.round_trip)
    wrong = "the result is further from float64 than rounding takes it"
    return judged(bench.apart(low, exact) / scale, bound, wrong)


def low_networks(bench: Bench) -> Finding:
    """Put the networks inside in bfloat16 and leave the points in float32.

    Points and ladj must stay float32 and finite, and a round trip must close to 5e-2 of their size:
    an inversion may add up the terms of a network in another order, and bfloat16 rounds at 4e-3.
    """
    transport = bench.make().to(torch.float32)
    networks = list(_networks(transport))
    if not networks:
        return skipped("there is no network inside")
    for network in networks:
        network.to(torch.bfloat16)
    x, context = bench.draw(5)
    x = x.float()
    if context is not None and not bench.classes:
        context = context.float()
    try:
        there = bench.run(transport, "base", start(x), context)
    except (RuntimeError, ValueError) as error:
        if "type" in str(error):
            return skipped("the networks take points of their own dtype only")
        raise
    back = bench.run(transport, "data", there, context)
    if {there.x.dtype, ladj_of(there).dtype, back.x.dtype} != {torch.float32}:
        return Finding("", "failed", message="points or ladj fall below float32")
    scale = 1 + float(there.x.detach().abs().max())
    bound = max(5e-2, 10 * bench.demands.round_trip)
    apart = gap(back.x, x)
    if bench.exact:
        apart = max(apart, gap(ladj_of(back), 0 * ladj_of(back)))
    wrong = "points do not come back, the account stays open, or they are not finite"
    return judged(apart / scale, bound, wrong)


def _networks(module: nn.Module) -> Iterator[nn.Module]:
    """Find the outermost modules inside that hold parameters and no transport."""
    for child in module.children():
        if any(isinstance(m, Transport) for m in child.modules()):
            yield from _networks(child)
        elif list(child.parameters()):
            yield child


def far(bench: Bench) -> Finding:
    """Count entries of values and gradients that are not finite far out, in both directions."""
    size = bench.demands.far
    if size is None:
        return skipped("far is None")
    transport, bad = bench.make(), 0
    sides: tuple[Side, Side] = ("base", "data")
    for side in sides:
        x, context = bench.side(transport, side, 4)
        points = (size * (x.sign() + (x == 0))).requires_grad_()
        state = bench.run(transport, side, start(points), context)
        total = state.x.sum() + ladj_of(state).sum()
        (gradient,) = torch.autograd.grad(total, points)
        bad += sum(int((~t.isfinite()).sum()) for t in (state.x, ladj_of(state), gradient))
    return judged(float(bad), 0.0, f"inputs of {size:g} give infinite or NaN entries")
