"""The contract of a transport as a suite that anyone can run on a layer of their own.

Each check measures one property on copies of the module in float64, away from initialisation:
errors of sign and factor cancel in round trips and hide where all parameters are zero, so the
log-determinant is held against an autograd Jacobian, in both directions, on perturbed parameters.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from cflow.errors import DomainError
from cflow.state import State, tracked
from cflow.testing.report import Finding, Report, judged, run_checks
from cflow.transport import Transport

__all__ = ["check_transport"]

Side: TypeAlias = Literal["base", "data"]


def check_transport(
    transport: Transport,
    *,
    shape: Sequence[int],
    context: Sequence[int] | None = None,
    points: Callable[..., Tensor] = torch.randn,
    round_trip: float = 1e-9,
    jacobian: float = 1e-8,
    spread: float = 0.3,
    far: float | None = 1e4,
    seed: int = 0,
) -> Report:
    """Hold a transport to its contract and report every check; the module is left untouched.

    The checks are for exact likelihoods. What draws noise is refused.

    Args:
        transport: The map to check; copies of it are run, in float64 and lower.
        shape: Event shape on the base side.
        context: Shape of one condition, or None.
        points: Draws base-side points, called as `points(*size, dtype=, generator=)`.
        round_trip: Bound of |pull(push(x)) - x| and of the open account, in float64; 1e-9 is a
            million roundings, and far below any wrong formula.
        jacobian: Bound of |ladj - log|det J||; a bound that is too wide to see a fault is reported.
        spread: Standard deviation of the noise added to the parameters.
        far: Size of far inputs that must stay finite, or None for maps of a bounded support.
        seed: Seed of every draw.

    Returns:
        The findings.

    Raises:
        DomainError: The transport's likelihood is not exact.

    Example:
        >>> from cflow.transport import ActNorm
        >>> check_transport(ActNorm((2,)), shape=(2,)).passed
        True
    """
    if transport.likelihood != "exact":
        raise DomainError(
            f"check_transport: likelihood must be 'exact', got {transport.likelihood!r}"
        )
    bench = _Bench(
        transport, tuple(shape), None if context is None else tuple(context), points, spread, seed
    )
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("round trip from the base", lambda: _round_trip(bench, "base", round_trip)),
        ("round trip from the data", lambda: _round_trip(bench, "data", round_trip)),
        ("ladj of push", lambda: _jacobian(bench, "base", jacobian, 0)),
        ("ladj of pull", lambda: _jacobian(bench, "data", jacobian, 0)),
        ("ladj of push at initialisation", lambda: _jacobian(bench, "base", jacobian, None)),
        ("ladj of pull at initialisation", lambda: _jacobian(bench, "data", jacobian, None)),
        ("points only", lambda: _points_only(bench)),
        ("context matters", lambda: _context(bench)),
        ("gradients of push", lambda: _gradients(bench, "base")),
        ("gradients of pull", lambda: _gradients(bench, "data")),
        ("batch axes", lambda: _batch_axes(bench)),
        ("batch independence", lambda: _independence(bench)),
        ("caller's tensors", lambda: _purity(bench)),
        ("float32", lambda: _low(bench, torch.float32, 1e-3)),
        ("bfloat16", lambda: _low(bench, torch.bfloat16, None)),
        ("far inputs", lambda: _far(bench, far)),
        ("state_dict", lambda: _reload(bench)),
    ]
    return run_checks(checks)


@dataclass(frozen=True)
class _Bench:
    """The transport under test and its draws."""

    transport: Transport
    shape: tuple[int, ...]
    context: tuple[int, ...] | None
    points: Callable[..., Tensor]
    spread: float
    seed: int

    def make(self, seed: int | None = 0) -> Transport:
        """Copy the transport to float64; perturb its parameters, or not where seed is None."""
        transport = copy.deepcopy(self.transport).to(torch.float64).eval()
        if seed is not None:
            source = torch.Generator().manual_seed(self.seed + seed)
            with torch.no_grad():
                for p in transport.parameters():
                    noise = torch.randn(p.shape, dtype=torch.float64, generator=source)
                    p += self.spread * noise.to(p)
        return transport

    def draw(self, *batch: int) -> tuple[Tensor, Tensor | None]:
        source = torch.Generator().manual_seed(self.seed + 1)
        x = self.points(*batch, *self.shape, dtype=torch.float64, generator=source)
        if self.context is None:
            return x, None
        size = (*batch, *self.context)
        return x, torch.randn(size, dtype=torch.float64, generator=source)

    def side(self, transport: Transport, *batch: int, base: bool) -> tuple[Tensor, Tensor | None]:
        """Draw points of the base side, or carry them to the data side."""
        x, context = self.draw(*batch)
        return (x, context) if base else (transport.push(State(x), context).x.detach(), context)


def _ladj(state: State) -> Tensor:
    if state.ladj is None:
        raise DomainError("ladj is None although it was tracked")
    return state.ladj


def _start(x: Tensor, batch: int = 1) -> State:
    return tracked(x, event_dim=x.dim() - batch)


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a.detach().double() - b.detach().double()).abs().max()) if a.numel() else 0.0


def _round_trip(bench: _Bench, side: Side, bound: float) -> Finding:
    transport, base = bench.make(), side == "base"
    x, context = bench.side(transport, 5, base=base)
    first, second = transport.push, transport.pull
    if not base:
        first, second = second, first
    back = second(first(_start(x), context), context)
    measured = max(_gap(back.x, x), float(_ladj(back).detach().abs().max()))
    name = f"round trip from the {side}"
    return judged(name, measured, bound, "points do not come back, or the account stays open")


def _jacobian(bench: _Bench, side: Side, bound: float, seed: int | None) -> Finding:
    transport, base = bench.make(seed), side == "base"
    name = f"ladj of {'push' if base else 'pull'}{' at initialisation' if seed is None else ''}"
    x, context = bench.side(transport, 3, base=base)
    method = transport.push if base else transport.pull
    ladj, gaps = _ladj(method(_start(x), context)), []
    for k in range(len(x)):
        given = None if context is None else context[k : k + 1]

        def move(z: Tensor, given: Tensor | None = given) -> Tensor:
            return method(State(z[None]), given).x[0]

        matrix = torch.autograd.functional.jacobian(move, x[k])
        size = x[k].numel()
        truth = torch.linalg.slogdet(matrix.reshape(size, size)).logabsdet
        gaps.append(_gap(ladj[k], truth))
    largest = float(ladj.detach().abs().max())
    if seed is not None and 0 < largest <= 20 * bound:
        return Finding(name, "failed", largest, bound, "the bound is too wide to see a fault")
    measured = float("nan") if any(g != g for g in gaps) else max(gaps)
    return judged(name, measured, bound, "ladj is not the log-determinant of the map")


def _points_only(bench: _Bench) -> Finding:
    transport, (x, context) = bench.make(), bench.draw(5)
    plain = transport.push(State(x), context)
    gap = _gap(plain.x, transport.push(_start(x), context).x)
    return judged("points only", gap, 1e-7, "points take another way when ladj is tracked")


def _context(bench: _Bench) -> Finding:
    if bench.context is None:
        return Finding("context matters", "skipped", message="the transport takes no context")
    transport, (x, context) = bench.make(), bench.draw(5)
    given = (torch.zeros(0) if context is None else context).requires_grad_()
    here = transport.push(_start(x), given)
    there = transport.push(_start(x), given.detach() + 1)
    (here.x.square().sum() + _ladj(here).sum()).backward()
    moved = _gap(here.x.detach(), there.x.detach())
    reached = given.grad is not None and bool((given.grad != 0).any())
    good = moved > 0 and reached
    wrong = "" if good else "the map does not change with the context, or no gradient reaches it"
    return Finding("context matters", "passed" if good else "failed", moved, None, wrong)


def _gradients(bench: _Bench, side: Side) -> Finding:
    transport, base = bench.make(), side == "base"
    name = f"gradients of {'push' if base else 'pull'}"
    x, context = bench.side(transport, 4, base=base)
    x = x.requires_grad_()
    transport.zero_grad()
    state = (transport.push if base else transport.pull)(_start(x), context)
    (state.x.square().sum() + _ladj(state).sum()).backward()
    dead = [n for n, p in transport.named_parameters() if p.grad is None or not p.grad.any()]
    if x.grad is None or not bool((x.grad != 0).all()):
        dead.append("the points")
    wrong = f"no gradient reaches {', '.join(dead)}" if dead else ""
    return Finding(name, "failed" if dead else "passed", float(len(dead)), 0.0, wrong)


def _batch_axes(bench: _Bench) -> Finding:
    transport, gaps = bench.make(), [0.0]
    for batch in ((), (0,), (2, 3), (2, 0)):
        x, context = bench.draw(*batch)
        state = transport.push(_start(x, len(batch)), context)
        flat_context = None if context is None else context.reshape(-1, *(bench.context or ()))
        flat = transport.push(_start(x.reshape(-1, *bench.shape)), flat_context)
        if _ladj(state).shape != batch:
            message = f"ladj of batch {batch} has shape {tuple(_ladj(state).shape)}"
            return Finding("batch axes", "failed", message=message)
        gaps += [_gap(state.x.reshape(flat.x.shape), flat.x)]
        gaps += [_gap(_ladj(state).reshape(-1), _ladj(flat))]
    return judged("batch axes", max(gaps), 1e-9, "batch axes change the result")


def _independence(bench: _Bench) -> Finding:
    transport, (x, context) = bench.make(), bench.draw(5)
    gaps = []
    for method in (transport.push, transport.pull):
        points = x if method == transport.push else transport.push(State(x), context).x
        full = method(_start(points), context)
        for k in range(5):
            given = None if context is None else context[k : k + 1]
            alone = method(_start(points[k : k + 1]), given)
            gaps += [_gap(alone.x[0], full.x[k]), _gap(_ladj(alone)[0], _ladj(full)[k])]
    return judged("batch independence", max(gaps), 1e-9, "a sample depends on its batch mates")


def _purity(bench: _Bench) -> Finding:
    transport, changed = bench.make(), 0.0
    for base in (True, False):
        x, context = bench.side(transport, 5, base=base)
        opening = torch.arange(5.0, dtype=torch.float64)
        held = [x, opening] + ([] if context is None else [context])
        before = [t.clone() for t in held]
        (transport.push if base else transport.pull)(State(x, ladj=opening), context)
        changed = max([changed, *(_gap(a, b) for a, b in zip(held, before, strict=True))])
    return judged("caller's tensors", changed, 0.0, "the map writes into its caller's tensors")


def _low(bench: _Bench, dtype: torch.dtype, bound: float | None) -> Finding:
    name, (x, context) = str(dtype).removeprefix("torch."), bench.draw(5)
    exact = bench.make().push(_start(x), context)
    given = None if context is None else context.to(dtype)
    low = bench.make().to(dtype).push(_start(x.to(dtype)), given)
    if low.x.dtype != dtype or _ladj(low).dtype != torch.float32:
        message = f"points are {low.x.dtype} and ladj {_ladj(low).dtype}, which must be float32"
        return Finding(name, "failed", message=message)
    if not bool(low.x.isfinite().all() & _ladj(low).isfinite().all()):
        return Finding(name, "failed", message="points or ladj are not finite")
    if bound is None:
        return Finding(name, "passed")
    scale = 1 + max(float(exact.x.detach().abs().max()), float(_ladj(exact).detach().abs().max()))
    measured = max(_gap(low.x, exact.x), _gap(_ladj(low), _ladj(exact))) / scale
    return judged(
        name, measured, bound, "the result is further from float64 than rounding takes it"
    )


def _far(bench: _Bench, far: float | None) -> Finding:
    if far is None:
        return Finding("far inputs", "skipped", message="far is None")
    transport, (x, context) = bench.make(), bench.draw(4)
    bad = 0
    for method in (transport.push, transport.pull):
        points = (far * (x.sign() + (x == 0))).requires_grad_()
        state = method(_start(points), context)
        total = state.x.sum() + _ladj(state).sum()
        (gradient,) = torch.autograd.grad(total, points)
        parts = (state.x, _ladj(state), gradient)
        bad += sum(int((~part.isfinite()).sum()) for part in parts)
    return judged("far inputs", float(bad), 0.0, f"inputs of {far:g} give infinite or NaN entries")


def _reload(bench: _Bench) -> Finding:
    first, other, (x, context) = bench.make(0), bench.make(1), bench.draw(5)
    other.load_state_dict(first.state_dict())
    gap = _gap(first.push(State(x), context).x, other.push(State(x), context).x)
    return judged("state_dict", gap, 0.0, "the map is not the same after a state_dict")
