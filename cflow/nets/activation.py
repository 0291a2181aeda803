"""Activations by name, and together with their slopes, for fields that know their own Jacobian.

    tanh:      a' = 1 - a^2
    softplus:  a  = log(1 + e^z),   a' = sigmoid(z)
    silu:      a  = z sigmoid(z),   a' = sigmoid(z) (1 + z - a)

All three are smooth, as the field of an ODE has to be; softplus is taken as z only beyond 40, where
float64 cannot tell the difference (torch's own threshold of 20 misses the slope by 2e-9).
"""

from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Activation", "activate", "activate_with_slope"]

Activation: TypeAlias = Literal["tanh", "softplus", "silu"]


def activate(name: Activation, z: Tensor) -> Tensor:
    """Return a(z), entry by entry.

    Example:
        >>> activate("softplus", torch.zeros(1))
        tensor([0.6931])
    """
    if name == "tanh":
        return torch.tanh(z)
    return _softplus(z) if name == "softplus" else functional.silu(z)


def activate_with_slope(name: Activation, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return a(z) and a'(z), entry by entry.

    Example:
        >>> activate_with_slope("tanh", torch.zeros(1))
        (tensor([0.]), tensor([1.]))
    """
    if name == "tanh":
        a = torch.tanh(z)
        return a, 1 - a.square()
    gate = torch.sigmoid(z)
    if name == "softplus":
        return _softplus(z), gate
    a = z * gate
    return a, gate * (1 + z - a)


def _softplus(z: Tensor) -> Tensor:
    return functional.softplus(z, threshold=40)
