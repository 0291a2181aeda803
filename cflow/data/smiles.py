"""Molecules as SMILES: QM9, 107,459 to train and 11,940 to test, and files of your own.

    C[C@H]1CC(=O)N1  ->  C  [C@H]  1  C  C  (  =  O  )  N  1  _  _  ..

Symbols are atoms in brackets, Br and Cl, rings %10 to %99, and single characters for all else; all
strings are padded to one length by a symbol that belongs to the vocabulary, so that a model learns
how long a molecule is. The vocabulary is that of the training file and stays fixed for the test.

The copy that is read is a filtered QM9 (the full set has about 134,000 molecules of up to nine
heavy atoms). Usual figures are the shares of samples that are valid, of these distinct, and of
these not in the training file.

Source: Weininger (1988), SMILES, Journal of Chemical Information and Computer Sciences 28;
Ramakrishnan et al. (2014), Quantum chemistry structures and properties of 134 kilo molecules,
Scientific Data 1; copy in sancar17/IDP-Inverse-Design-for-Molecules.
"""

import os
import re
from typing import NamedTuple

from torch import Tensor

from cflow.data.delimited import text
from cflow.data.fetch import RemoteFile, fetch, find
from cflow.data.vocabulary import Vocabulary
from cflow.errors import DataError, DomainError

__all__ = ["FILES", "PACKED", "PAD", "Molecules", "qm9", "read", "tokenize"]

ADDRESS = (
    "https://raw.githubusercontent.com/sancar17/IDP-Inverse-Design-for-Molecules/"
    "da0a375b9218947a18446fd91a760a75e7ee035b/data/"
)

# Checksums of the original file and of its gzipped copy, which is read where it lies on disk.
CHECKSUMS = {
    "train": (
        "c567e24b4bc34bbe727be686d814141965b0084289877c8b702e040ecb92db5c",
        "68abf848720ab9e29e1a76e07bdf3bf474c8f7d61782e045f1b0d9b6521ed060",
    ),
    "test": (
        "41aee7d104ad4b0a5b01f932d90561faa7d70516d6ec6a4963b5a63f4aab96f4",
        "44c7d71c2a7d3bba09d6f93e7abf7e29917a854a1a565514f0d36a429ff523c0",
    ),
}
FILES = {
    name: RemoteFile(f"qm9_smiles/qm9_smiles_{name}.txt", f"{ADDRESS}qm9_smiles_{name}.txt", plain)
    for name, (plain, _) in CHECKSUMS.items()
}
PACKED = {
    name: RemoteFile(
        f"qm9_smiles/qm9_smiles_{name}.txt.gz", f"{ADDRESS}qm9_smiles_{name}.txt", packed
    )
    for name, (_, packed) in CHECKSUMS.items()
}

PAD = "_"  # no character of SMILES
SYMBOL = re.compile(r"\[[^\[\]\s]+\]|Br|Cl|%[0-9]{2}|[BCNOPSFIbcnops*0-9().=#$:/\\-]")


class Molecules(NamedTuple):
    """Hold molecules as tokens and as strings.

    Attributes:
        train: Tokens, int64, `(molecules, length)`, padded behind.
        test: Tokens of the test file, of the same length.
        vocabulary: The symbols of the training file, and `PAD` as token 0.
        train_smiles: The strings as the training file has them.
        test_smiles: The strings of the test file.
    """

    train: Tensor
    test: Tensor
    vocabulary: Vocabulary
    train_smiles: tuple[str, ...]
    test_smiles: tuple[str, ...]


def qm9() -> Molecules:
    """Load the SMILES of QM9.

    Returns:
        Tokens `(107459, 20)` and `(11940, 20)` over 30 symbols, and the strings.

    Raises:
        DataError: A file is damaged, or its address cannot be reached.
        MissingExtraError: A file has to be fetched and pooch is not installed.

    Example:
        >>> FILES["test"].path
        'qm9_smiles/qm9_smiles_test.txt'
        >>> molecules = qm9()  # doctest: +SKIP
        >>> molecules.vocabulary.decode(molecules.train[0])  # doctest: +SKIP
        'N#C[C@H]1C[C@H]([C@H]2CN2)O1'
    """
    return read(_place("train"), _place("test"))


def read(
    train: str | os.PathLike[str], test: str | os.PathLike[str], *, length: int | None = None
) -> Molecules:
    r"""Read SMILES from two files of your own, one molecule a line.

    The files are text in UTF-8, plain or gzipped (`.gz`); blank lines are passed over. Whether a
    string is a molecule is not asked, only whether it consists of symbols.

    Args:
        train: The file that also gives the vocabulary.
        test: Another one, with no symbols beyond those.
        length: Symbols that every string is padded to; None takes the longest of both files.

    Raises:
        DataError: A file cannot be read or has no molecules, a line holds something that is no
            symbol, is longer than `length`, or has a symbol that is not in the training file.
        DomainError: The length is not positive.

    Example:
        >>> import os, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> train, test = os.path.join(folder, "train.txt"), os.path.join(folder, "test.txt")
        >>> _ = open(train, "w").write("CCCl\nc1cc[nH]c1\n")
        >>> _ = open(test, "w").write("C[nH]C\n")
        >>> molecules = read(train, test)
        >>> molecules.vocabulary.symbols
        ('_', '1', 'C', 'Cl', '[nH]', 'c')
        >>> molecules.test.tolist()
        [[2, 4, 2, 0, 0, 0, 0]]
    """
    if length is not None and length < 1:
        raise DomainError(f"smiles.read: length must be positive, got {length}")
    learned, tested = _lines(train), _lines(test)
    vocabulary = Vocabulary.of((s for _, symbols in learned for s in symbols), pad=PAD)
    size = max(len(symbols) for _, symbols in learned + tested) if length is None else length
    return Molecules(
        _padded(train, learned, vocabulary, size),
        _padded(test, tested, vocabulary, size),
        vocabulary,
        tuple("".join(symbols) for _, symbols in learned),
        tuple("".join(symbols) for _, symbols in tested),
    )


def tokenize(smiles: str, where: str = "smiles.tokenize") -> list[str]:
    """Split a SMILES into its symbols.

    Args:
        smiles: The string, without white space around it.
        where: What the error names first, such as a file and its line.

    Raises:
        DataError: Something is no symbol: a bracket that does not end, a ring % without two digits,
            an element that has to stand in brackets, a blank; characters are counted from 1.

    Example:
        >>> tokenize("C[C@H](Cl)c1cc[nH]c1")
        ['C', '[C@H]', '(', 'Cl', ')', 'c', '1', 'c', 'c', '[nH]', 'c', '1']
    """
    symbols = SYMBOL.findall(smiles)
    if "".join(symbols) == smiles:
        return symbols
    k = 0
    while found := SYMBOL.match(smiles, k):
        k = found.end()
    raise DataError(
        f"{where}: expected symbols of SMILES (atoms in brackets, Br, Cl, %10, single characters), "
        f"got {smiles[k : k + 12]!r} from character {k + 1} of {smiles[:80]!r}"
    )


def _place(name: str) -> os.PathLike[str]:
    packed = find(PACKED[name]) is not None and find(FILES[name]) is None
    return fetch(PACKED[name] if packed else FILES[name])


def _lines(path: str | os.PathLike[str]) -> list[tuple[int, list[str]]]:
    """Return the number of every line that is not blank, counted from 1, and its symbols."""
    lines = enumerate(text("smiles.read", path).splitlines(), start=1)
    found = [
        (k, tokenize(line.strip(), f"smiles.read: {path}, line {k}"))
        for k, line in lines
        if line.strip()
    ]
    if not found:
        raise DataError(f"smiles.read: {path} is empty: all its lines are blank")
    return found


def _padded(
    path: str | os.PathLike[str],
    found: list[tuple[int, list[str]]],
    vocabulary: Vocabulary,
    length: int,
) -> Tensor:
    """Return tokens `(molecules, length)`; one call encodes all, three times faster."""
    known, padded = set(vocabulary.symbols), []
    for line, symbols in found:
        where = f"smiles.read: {path}, line {line}"
        if len(symbols) > length:
            raise DataError(
                f"{where}: expected at most length={length} symbols, got {len(symbols)}; choose a "
                "larger length or leave that line out"
            )
        if not known.issuperset(symbols):
            vocabulary.encode(symbols, where)  # raises, and names the symbol
        padded += symbols + [PAD] * (length - len(symbols))
    return vocabulary.encode(padded).reshape(len(found), length)
