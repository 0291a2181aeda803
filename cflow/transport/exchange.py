"""Exchange parts of a transport, wherever they stand, and share everything else.

Chains, inverses, scales, wrappers of layers and containers of other authors are all modules that
hold modules; a copy that differs only in what it holds needs no knowledge of any of them.
"""

import copy
from collections.abc import Callable
from typing import cast

from torch import nn

from cflow.transport.transport import Transport

__all__ = ["exchanged"]


def exchanged(transport: Transport, change: Callable[[Transport], Transport | None]) -> Transport:
    """Return the transport with some of its parts exchanged; parameters are shared.

    Args:
        transport: The transport; itself when nothing in it is exchanged.
        change: Asked for every transport within, outermost first: what shall stand in its place, or
            None to keep it and look inside.

    Example:
        >>> from cflow.transport import Affine, Chain, Inverse
        >>> chain = Chain(Affine(2.0), Inverse(Affine(3.0)))
        >>> halved = exchanged(chain, lambda t: Affine(0.5) if isinstance(t, Affine) else None)
        >>> [float(part.scale) for part in halved.modules() if isinstance(part, Affine)]
        [0.5, 0.5]
    """
    return cast(Transport, _exchanged(transport, change))


def _exchanged(module: nn.Module, change: Callable[[Transport], Transport | None]) -> nn.Module:
    if isinstance(module, Transport):
        new = change(module)
        if new is not None:
            new.training = module.training  # not new.train(), which would reach shared modules
            return new
    inside = {
        name: _exchanged(part, change) for name, part in module._modules.items() if part is not None
    }
    if all(part is module._modules[name] for name, part in inside.items()):
        return module
    again = copy.copy(module)
    again._modules = {**module._modules, **inside}
    return again
