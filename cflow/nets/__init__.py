"""Plain networks that know nothing of flows."""

from cflow.nets.mlp import MLP

__all__ = ["MLP"]
