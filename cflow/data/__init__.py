"""Data sets: bundled with a library, found on disk, or fetched once from their original address."""

from cflow.data import anomaly, lasa, regression, single_cell, tables, toy
from cflow.data.digits import Split, digits
from cflow.data.fetch import RemoteFile, fetch, find
from cflow.data.mnist import MNIST, Labelled, mnist

__all__ = [
    "MNIST",
    "Labelled",
    "RemoteFile",
    "Split",
    "anomaly",
    "digits",
    "fetch",
    "find",
    "lasa",
    "mnist",
    "regression",
    "single_cell",
    "tables",
    "toy",
]
