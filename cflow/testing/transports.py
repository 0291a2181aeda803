"""The contract of a transport as a suite that anyone can run on a layer of their own.

Each check measures one property on copies of the module in float64, away from initialisation, and
states the bound it is held to. What draws noise is not refused: a random ladj is held to its mean,
and stochastic parts (dequantisation), which have no inverse, are taken out before the rest is held
to round trips.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from cflow.testing import maps, precision, structure, tracing
from cflow.testing.bench import Bench, Side
from cflow.testing.demands import Demands
from cflow.testing.persistence import initialised_once, reloads
from cflow.testing.report import Check, Report, run_checks
from cflow.transport import Chain, Stochastic, Transport
from cflow.transport.exchange import exchanged

__all__ = ["check_transport"]


def check_transport(
    transport: Transport,
    *,
    shape: Sequence[int],
    context: Sequence[int] | None = None,
    classes: int = 0,
    adjacency: Tensor | None = None,
    demands: Demands | None = None,
) -> Report:
    """Hold a transport to its contract and report every check; the module is left untouched.

    Copies run in evaluation mode. `Stochastic` parts are taken out; a transport whose likelihood is
    a bound without them is held to what noise leaves of the contract.

    Args:
        transport: The map to check.
        shape: Event shape on the base side.
        context: Shape of one condition, or None.
        classes: Number of classes where the context is integer labels, which then have shape
            `context`, () for one label; 0 for a context of real numbers.
        adjacency: True at (i, j) where entry i of the push depends on entry j of the base. One with
            an empty diagonal says who steers whom: own entries are added, and the pull is held to
            it as well. Without it autoregressive layers are held to that of their network.
        demands: How points are drawn and how exact the map must be; `Demands()` if None.

    Returns:
        The findings; `print(report)` shows them as a table.

    Example:
        A layer that forgets the Jacobian's sign on the way back is found out.

        >>> import torch
        >>> from cflow.transport import Layer
        >>> class Double(Layer):
        ...     def __init__(self, sign):
        ...         super().__init__(event_dim=0)
        ...         self.sign = sign
        ...     def _push(self, x, context, *, tracked):
        ...         return 2 * x, torch.full_like(x, 2.0, dtype=_wide(x)).log()
        ...     def _pull(self, y, context, *, tracked):
        ...         return y / 2, self.sign * torch.full_like(y, 2.0, dtype=_wide(y)).log()
        >>> def _wide(x):  # log-determinants are never below float32
        ...     return torch.promote_types(x.dtype, torch.float32)
        >>> check_transport(Double(-1), shape=(3,)).passed
        True
        >>> for finding in check_transport(Double(+1), shape=(3,)).failures:
        ...     print(finding.name, "|", finding.message)
        round trip from the base | points do not come back, or the account stays open
        round trip from the data | points do not come back, or the account stays open
        ladj of pull | ladj is not the log-determinant of the map
        ladj of pull at initialisation | ladj is not the log-determinant of the map
    """
    whole = copy.deepcopy(transport).eval()
    plain = exchanged(whole, lambda part: Chain() if isinstance(part, Stochastic) else None)
    bench = Bench(
        plain,
        tuple(shape),
        None if context is None else tuple(context),
        classes,
        Demands() if demands is None else demands,
    )
    checks: list[Check] = []
    if plain.likelihood != "bound":
        checks += [*_of_map(bench), *_of_use(bench, adjacency)]
    if whole.likelihood == "bound":
        checks += _noisy(replace(bench, transport=whole))
    return run_checks(checks)


def _of_map(bench: Bench) -> list[Check]:
    """List what holds of the mathematics."""
    sides: tuple[Side, Side] = ("base", "data")
    ways = {"base": "push", "data": "pull"}
    checks = []
    for side in sides:
        claim = "there and back is the identity, and the account closes"
        run = partial(maps.round_trip, bench, side)
        checks.append(Check(f"round trip from the {side}", claim, run))
    for seed, when in ((0, ""), (None, " at initialisation")):
        for side in sides:
            name = f"ladj of {ways[side]}{when}"
            if bench.exact:
                claim = "ladj is log|det| of the autograd Jacobian"
                checks.append(Check(name, claim, partial(maps.jacobian, bench, side, seed)))
            elif seed is not None:
                claim = "the mean of ladj is log|det| of the Jacobian, in standard errors"
                checks.append(Check(name, claim, partial(maps.unbiased, bench, side)))
    claim = "points are the same whether ladj is tracked or not"
    checks.append(Check("points only", claim, partial(maps.points_only, bench)))
    claim = "the map changes with its context"
    checks.append(Check("context matters", claim, partial(maps.context_matters, bench)))
    for side in sides:
        claim = "gradients reach every parameter and the points"
        run = partial(maps.gradients, bench, side)
        checks.append(Check(f"gradients of {ways[side]}", claim, run))
    if not bench.exact:
        claim = "the generator is the only source of noise"
        checks.append(Check("generator", claim, partial(maps.reproducible, bench)))
    return checks


def _of_use(bench: Bench, adjacency: Tensor | None) -> list[Check]:
    """List what holds of the module in use."""
    low = [
        Check(
            str(dtype).removeprefix("torch."),
            "points keep their dtype, ladj is float32, all finite and near float64",
            partial(precision.low_precision, bench, dtype),
        )
        for dtype in bench.demands.precisions
    ]
    if low:
        claim = "networks in bfloat16 leave points and ladj in float32"
        low.append(Check("bfloat16 networks", claim, partial(precision.low_networks, bench)))
    rows = [
        ("batch axes", "any number of batch axes, empty ones too", maps.batch_axes),
        ("batch independence", "a sample does not depend on its batch mates", maps.independence),
        ("caller's tensors", "nothing is written into", maps.purity),
        ("far inputs", "values and gradients stay finite", precision.far),
        ("state_dict", "loaded weights give the same map", reloads),
        (
            "initialised once",
            "statistics set from data are saved, and stay",
            initialised_once,
        ),
        (
            "links of networks",
            "networks read what their adjacency says",
            structure.links_of_networks,
        ),
        ("torch.func", "vmap and jacrev give the same numbers", tracing.transformed),
        ("torch.compile", "push and pull compile as one graph", tracing.compiles),
        ("torch.export", "push exports for any batch size", tracing.exports),
    ]
    checks = low + [Check(name, claim, partial(run, bench)) for name, claim, run in rows]
    claim = "the Jacobians have the links of the adjacency, no more and no fewer"
    checks.append(Check("links", claim, partial(structure.links_of_map, bench, adjacency)))
    return checks


def _noisy(bench: Bench) -> list[Check]:
    """List what holds where the pull draws noise that the push forgets."""
    claim = "the generator is the only source of noise"
    checks = [Check("generator", claim, partial(maps.reproducible, bench))]
    claim = "gradients reach every parameter and the points through the noise"
    return [*checks, Check("gradients of the bound", claim, partial(maps.gradients, bench, "data"))]
