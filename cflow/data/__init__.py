"""Data sets: bundled with a library, found on disk, or fetched once from their original address."""

from cflow.data import tables, toy
from cflow.data.digits import Split, digits
from cflow.data.fetch import RemoteFile, fetch, find

__all__ = ["RemoteFile", "Split", "digits", "fetch", "find", "tables", "toy"]
