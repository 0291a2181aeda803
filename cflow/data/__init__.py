"""Data sets: bundled with a library, found on disk, or fetched once from their original address."""

from cflow.data import (
    anomaly,
    crystals,
    earth,
    grouped,
    lasa,
    meshes,
    particles,
    promoters,
    ramachandran,
    regression,
    single_cell,
    smiles,
    tables,
    text,
    tokens,
    torsion,
    toy,
)
from cflow.data.digits import Split, digits
from cflow.data.fetch import RemoteFile, fetch, find
from cflow.data.grouped import grouped_split, random_split
from cflow.data.mnist import MNIST, Labelled, mnist
from cflow.data.vocabulary import Vocabulary

__all__ = [
    "MNIST",
    "Labelled",
    "RemoteFile",
    "Split",
    "Vocabulary",
    "anomaly",
    "crystals",
    "digits",
    "earth",
    "fetch",
    "find",
    "grouped",
    "grouped_split",
    "lasa",
    "meshes",
    "mnist",
    "particles",
    "promoters",
    "ramachandran",
    "random_split",
    "regression",
    "single_cell",
    "smiles",
    "tables",
    "text",
    "tokens",
    "torsion",
    "toy",
]
