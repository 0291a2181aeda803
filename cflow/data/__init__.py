"""Data sets, loaded from what is installed or lies on disk."""

from cflow.data.digits import Split, digits

__all__ = ["Split", "digits"]
