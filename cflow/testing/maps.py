"""Checks of the map itself: round trips, log-determinants, gradients, batches.

Errors of sign and factor cancel in round trips and hide where all parameters are zero, so the
log-determinant is held against an autograd Jacobian, in both directions, on perturbed parameters.
"""

import torch
from torch import Tensor

from cflow.state import State
from cflow.testing.bench import Bench, Side, gap, ladj_of, start
from cflow.testing.report import Finding, judged, skipped

__all__ = [
    "batch_axes",
    "context_matters",
    "gradients",
    "independence",
    "jacobian",
    "points_only",
    "purity",
    "reproducible",
    "round_trip",
    "unbiased",
]

SIGMAS = 6.0
"""Standard errors that a mean may lie from the truth: for a normal mean a false alarm of 2e-9."""


def round_trip(bench: Bench, side: Side) -> Finding:
    """Go there and back: the points return, and the account closes at zero."""
    transport, back = bench.make(), "data" if side == "base" else "base"
    x, context = bench.side(transport, side, 5)
    state = bench.run(transport, back, bench.run(transport, side, start(x), context), context)
    wrong = "points do not come back"
    measured = gap(state.x, x)
    if bench.exact:
        measured, wrong = (
            max(measured, gap(ladj_of(state), 0 * ladj_of(state))),
            ("points do not come back, or the account stays open"),
        )
    return judged(measured, bench.demands.round_trip, wrong)


def jacobian(bench: Bench, side: Side, seed: int | None) -> Finding:
    """Hold ladj against the determinant of the autograd Jacobian, in float64."""
    transport, bound = bench.make(seed), bench.demands.jacobian
    x, context = bench.side(transport, side, 3)
    ladj = ladj_of(bench.run(transport, side, start(x), context))
    truth = _truth(bench, side, seed)
    largest = float(ladj.detach().abs().max())
    if seed is not None and 0 < largest <= 20 * bound:
        return Finding("", "failed", largest, bound, "the bound is too wide to see a fault")
    return judged(gap(ladj, truth), bound, "ladj is not the log-determinant of the map")


def unbiased(bench: Bench, side: Side) -> Finding:
    """Hold the mean of random ladj against the autograd Jacobian, in standard errors."""
    transport, repeats = bench.make(), bench.demands.repeats
    x, context = bench.side(transport, side, 3)
    rows = x.repeat_interleave(repeats, 0)
    given = None if context is None else context.repeat_interleave(repeats, 0)
    with torch.no_grad():
        ladj = ladj_of(bench.run(transport, side, start(rows), given)).reshape(3, repeats)
    truth = _truth(bench, side, 0)
    # Where the noise makes no difference the figure is an error in units of the exact bound.
    error = ladj.std(1) / repeats**0.5 + bench.demands.jacobian / SIGMAS
    visible, largest = SIGMAS * float(error.mean()), float(truth.abs().max())
    if 0 < largest <= visible:
        message = f"{repeats} repeats are too few to see a fault"
        return Finding("", "failed", visible, largest, message)
    measured = float(((ladj.mean(1) - truth) / error).abs().max())
    return judged(measured, SIGMAS, "the mean of ladj is not the log-determinant of the map")


def _truth(bench: Bench, side: Side, seed: int | None) -> Tensor:
    """Return log|det J| of three points."""
    transport, found = bench.make(seed), []
    x, context = bench.side(transport, side, 3)
    for k in range(len(x)):
        given = None if context is None else context[k : k + 1]

        def move(z: Tensor, given: Tensor | None = given) -> Tensor:
            return bench.run(transport, side, State(z[None]), given).x[0]

        matrix = torch.autograd.functional.jacobian(move, x[k])
        size = x[k].numel()
        found.append(torch.linalg.slogdet(matrix.reshape(size, size)).logabsdet)
    return torch.stack(found)


def points_only(bench: Bench) -> Finding:
    """Run with and without ladj: an adaptive solver may step otherwise, nothing else may."""
    transport, (x, context) = bench.make(), bench.draw(5)
    plain = bench.run(transport, "base", State(x), context)
    full = bench.run(transport, "base", start(x), context)
    bound = max(1e-7, bench.demands.round_trip)
    return judged(gap(plain.x, full.x), bound, "points take another way when ladj is tracked")


def context_matters(bench: Bench) -> Finding:
    """Change the condition: the map changes, and gradients reach conditions that are numbers."""
    transport, (x, context) = bench.make(), bench.draw(5)
    if context is None:
        return skipped("the transport takes no context")
    if not bench.classes:
        context = context.requires_grad_()
    here = bench.run(transport, "base", start(x), context)
    there = bench.run(transport, "base", start(x), bench.other(context.detach()))
    moved, reached = bench.apart(here, there), True
    if not bench.classes:
        (here.x.square().sum() + ladj_of(here).sum()).backward()
        reached = context.grad is not None and bool((context.grad != 0).any())
    if moved > 0 and reached:
        return Finding("", "passed", moved)
    wrong = "the map does not change with the context, or no gradient reaches it"
    return Finding("", "failed", moved, message=wrong)


def gradients(bench: Bench, side: Side) -> Finding:
    """Count the parameters, and the points, that no gradient reaches."""
    transport = bench.make()
    x, context = bench.side(transport, side, 4)
    x = x.requires_grad_()
    transport.zero_grad()
    state = bench.run(transport, side, start(x), context)
    (state.x.square().sum() + ladj_of(state).sum()).backward()
    dead = [
        name
        for name, p in transport.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    if x.grad is None or not bool((x.grad != 0).all()):
        dead.append("the points")
    return judged(float(len(dead)), 0.0, f"no gradient reaches {', '.join(dead)}")


def batch_axes(bench: Bench) -> Finding:
    """Use no batch axis, several, and empty ones: the rounding of a matrix product may differ."""
    transport, apart = bench.make(), [0.0]
    for batch in ((), (0,), (2, 3), (2, 0)):
        x, context = bench.draw(*batch)
        state = bench.run(transport, "base", start(x, len(batch)), context)
        flat_context = None if context is None else context.reshape(-1, *(bench.context or ()))
        flat = bench.run(transport, "base", start(x.reshape(-1, *bench.shape)), flat_context)
        if ladj_of(state).shape != batch:
            message = f"ladj of batch {batch} has shape {tuple(ladj_of(state).shape)}"
            return Finding("", "failed", message=message)
        again = State(state.x.reshape(flat.x.shape), ladj_of(state).reshape(-1))
        apart.append(bench.apart(again, flat))
    bound = max(1e-9, bench.demands.round_trip)
    return judged(max(apart), bound, "batch axes change the result")


def independence(bench: Bench) -> Finding:
    """Run samples together and one by one."""
    transport, apart = bench.make(), []
    sides: tuple[Side, Side] = ("base", "data")
    for side in sides:
        x, context = bench.side(transport, side, 3)
        full = bench.run(transport, side, start(x), context)
        for k in range(3):
            given = None if context is None else context[k : k + 1]
            alone = bench.run(transport, side, start(x[k : k + 1]), given)
            apart.append(bench.apart(alone, State(full.x[k : k + 1], ladj_of(full)[k : k + 1])))
    bound = max(1e-9, bench.demands.round_trip)
    return judged(max(apart), bound, "a sample depends on its batch mates")


def purity(bench: Bench) -> Finding:
    """Compare the caller's tensors, and the module's own, before and after."""
    transport, changed = bench.make(), 0.0
    own = {name: value.clone() for name, value in transport.state_dict().items()}
    sides: tuple[Side, Side] = ("base", "data")
    for side in sides:
        x, context = bench.side(transport, side, 5)
        opening = torch.arange(5.0, dtype=torch.float64)
        held = [x, opening] + ([] if context is None else [context])
        before = [t.clone() for t in held]
        bench.run(transport, side, State(x, ladj=opening), context)
        changed = max([changed, *(gap(a, b) for a, b in zip(held, before, strict=True))])
    after = transport.state_dict()
    changed = max([changed, *(gap(after[name], value) for name, value in own.items())])
    return judged(changed, 0.0, "a call writes into its caller's tensors, or into the module")


def reproducible(bench: Bench) -> Finding:
    """Pull twice with the same generator: the same numbers, and torch's own generator rests."""
    transport = bench.make()
    x, context = bench.side(transport, "data", 5)
    before = torch.get_rng_state()
    a, b = (bench.run(transport, "data", start(x), context) for _ in range(2))
    if not torch.equal(before, torch.get_rng_state()):
        return Finding("", "failed", message="noise is drawn from torch's own generator")
    apart = max(gap(a.x, b.x), gap(ladj_of(a), ladj_of(b)))
    return judged(apart, 0.0, "the same generator gives other numbers")
