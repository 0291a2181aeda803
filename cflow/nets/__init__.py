"""Plain networks that know nothing of flows."""

from cflow.nets.activation import Activation, activate, activate_with_slope
from cflow.nets.mlp import MLP

__all__ = ["MLP", "Activation", "activate", "activate_with_slope"]
