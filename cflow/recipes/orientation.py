"""Which direction of a layer is cheap: the one thing that splits MAF from IAF.

The push of a plain layer takes one pass. Inverted, its pull does, and with it the density.
"""

from typing import Literal, TypeAlias

from cflow.transport import Inverse, Transport

__all__ = ["Fast", "oriented"]

Fast: TypeAlias = Literal["density", "sample"]
"""What takes one parallel pass a layer: `log_prob`, or `sample`."""


def oriented(layer: Transport, fast: Fast) -> Transport:
    """Return the layer, inverted where the density is to be fast.

    Example:
        >>> from cflow.transport import Permutation
        >>> type(oriented(Permutation([1, 0]), "density")).__name__
        'Inverse'
    """
    return Inverse(layer) if fast == "density" else layer
