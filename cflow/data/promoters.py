"""DNA with two classes: the sample of 1000 sequences of 101 bases that comes with DNABERT.

A sequence is written as overlapping words: 96 of six bases each, every one a base further, are 101
bases. Tokens are bases, A C G T = 0 1 2 3; half of the sequences have the label 1. The set is
small: for trying things.

It comes as the example of a task on promoters. What it holds looks like binding sites of the
protein CTCF: their core, CCA[CG][CT]AG[AG][GT]GGC on either strand, is in 125 of the 500 sequences
labelled 1 and in none of the others, while TATAAA is in four and in two. So a figure on it says
little about promoters.

Source: Ji et al. (2021), DNABERT, Bioinformatics 37; file in jerryji1993/DNABERT, Apache-2.0.
"""

import os
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from cflow.data.delimited import Row, rows
from cflow.data.fetch import RemoteFile, fetch
from cflow.data.vocabulary import Vocabulary
from cflow.errors import DataError

__all__ = ["BASES", "PROMOTERS", "Promoters", "promoters"]

PROMOTERS = RemoteFile(
    "dna_promoter_dev/dnabert_ft6_dev.tsv",
    "https://raw.githubusercontent.com/jerryji1993/DNABERT/"
    "b6da04ec9a7d4e53efe5b33a6ce1a21c0e7ac413/examples/sample_data/ft/6/dev.tsv",
    "c89896c9c3e93d86463bcd3daedcbc48cf94f2f261990ef0f180bd602fd9a109",
)
BASES = Vocabulary(("A", "C", "G", "T"))
HEADER = ["sequence", "label"]


class Promoters(NamedTuple):
    """Hold bases, int64, `(sequences, length)`, classes, int64, `(sequences,)`, and `BASES`."""

    tokens: Tensor
    labels: Tensor
    vocabulary: Vocabulary


def promoters(path: str | os.PathLike[str] | None = None) -> Promoters:
    r"""Load sequences of DNA and their classes.

    Args:
        path: A file of your own instead, plain or gzipped (`.gz`): on each line a sequence, a tab,
            and a label, an integer 0 or more; the first line may be `sequence`, tab, `label`. A
            sequence is one word, or overlapping words of equal length, each a base further. None is
            the sample of DNABERT.

    Returns:
        Bases, labels and vocabulary; `(1000, 101)` and `(1000,)` for the sample.

    Raises:
        DataError: The file is damaged or cannot be fetched, or a line is wrong: words that do not
            overlap, a letter other than A, C, G and T, another length, or a label that is none.
        MissingExtraError: The file has to be fetched and pooch is not installed.

    Example:
        >>> import os, tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "dna.tsv")
        >>> _ = open(path, "w").write("sequence\tlabel\nACG CGT GTT\t1\nGGG GGA GAC\t0\n")
        >>> tokens, labels, vocabulary = promoters(path)
        >>> tokens.tolist(), labels.tolist(), vocabulary.decode(tokens[0])
        ([[0, 1, 2, 3, 3], [2, 2, 2, 0, 1]], [1, 0], 'ACGTT')
    """
    path = fetch(PROMOTERS) if path is None else path
    table = rows("promoters", path, separator="\t")
    table = table[1:] if table[0].values == HEADER else table
    if not table or len(table[0].values) != len(HEADER):
        raise DataError(
            f"promoters: {path} must have lines of a sequence, a tab and a label, got "
            f"{table[0].values if table else 'the names of the columns alone'}"
        )
    tokens = [_bases(f"promoters: {path}, line {row.line}", row.values[0]) for row in table]
    for row, found in zip(table, tokens, strict=True):
        if len(found) != len(tokens[0]):
            raise DataError(
                f"promoters: {path}, line {row.line}: expected {len(tokens[0])} bases as in line "
                f"{table[0].line}, got {len(found)}"
            )
    labels = [_label(f"promoters: {path}, line {row.line}", row) for row in table]
    return Promoters(torch.stack(tokens), torch.tensor(labels, dtype=torch.int64), BASES)


def _bases(where: str, sequence: str) -> Tensor:
    """Join words that overlap: all of the first, and the last base of every other."""
    words = sequence.split() or [""]
    for k, (word, behind) in enumerate(pairwise(words), start=1):
        if word[1:] != behind[:-1]:
            raise DataError(
                f"{where}: expected word {k + 1} to repeat word {k} without its first base and to "
                f"add one, got {behind!r} behind {word!r}"
            )
    joined = words[0] + "".join(word[-1] for word in words[1:])
    if not joined:
        raise DataError(f"{where}: expected a sequence, got a blank")
    return BASES.encode(joined, where)


def _label(where: str, row: Row) -> int:
    value = row.values[1]
    if not (value.isascii() and value.isdigit()):
        raise DataError(f"{where}: expected a label, an integer 0 or more, got {value!r}")
    return int(value)
