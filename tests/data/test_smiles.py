"""SMILES: symbols, padding, the vocabulary of the training file, and lines that are named."""

import gzip
from pathlib import Path

import pytest
import torch

from cflow.data import find, smiles
from cflow.errors import DataError, DomainError


def written(folder: Path, train: str, test: str = "C\n") -> tuple[Path, Path]:
    (folder / "train.smi").write_text(train)
    (folder / "test.smi").write_text(test)
    return folder / "train.smi", folder / "test.smi"


def test_the_counts_of_qm9() -> None:
    for name in ("train", "test"):
        if find(smiles.FILES[name]) is None and find(smiles.PACKED[name]) is None:
            pytest.skip("QM9's SMILES are not on disk; name a folder with them in CFLOW_DATA")
    found = smiles.qm9()
    assert found.train.shape == (107_459, 20)
    assert found.test.shape == (11_940, 20)
    assert found.train.dtype == found.test.dtype == torch.int64
    assert (len(found.train_smiles), len(found.test_smiles)) == (107_459, 11_940)
    assert len(found.vocabulary) == 30
    assert found.vocabulary.symbols[0] == found.vocabulary.pad == smiles.PAD
    assert torch.bincount(found.train.flatten()).min() > 0
    assert found.train_smiles[1] == "C#Cc1cc[nH]c1OC"
    assert not set(found.train_smiles) & set(found.test_smiles)
    for rows, strings in ((found.train, found.train_smiles), (found.test, found.test_smiles)):
        chosen = range(0, len(rows), 97)
        assert [found.vocabulary.decode(rows[k]) for k in chosen] == [strings[k] for k in chosen]
        pad = rows == 0
        assert (pad[:, 1:] >= pad[:, :-1]).all()  # behind every molecule, never inside


@pytest.mark.parametrize(
    ("string", "symbols"),
    [
        ("BrCCl", "Br C Cl"),
        ("[13CH4].[Na+]", "[13CH4] . [Na+]"),
        ("C%12CC%12", "C %12 C C %12"),
        ("c1ccsc1B", "c 1 c c s c 1 B"),
        ("F/C=C\\I", "F / C = C \\ I"),
        ("C[C@@H](N)C#N", "C [C@@H] ( N ) C # N"),
    ],
)
def test_symbols(string: str, symbols: str) -> None:
    assert smiles.tokenize(string) == symbols.split()


@pytest.mark.parametrize(
    ("string", "words"),
    [
        ("CC[nH", r"got '\[nH' from character 3 of 'CC\[nH'"),
        ("CC]C", r"got '\]C' from character 3"),
        ("C[]C", r"got '\[\]C' from character 2"),
        ("C[[nH]]C", r"got '\[\[nH\]\]C' from character 2"),
        ("C%1C", "got '%1C' from character 2"),
        ("CCO ethanol", "got ' ethanol' from character 4"),
        ("SMILES", "got 'MILES' from character 2"),
        ("CNaC", "got 'aC' from character 3"),
        ("C²", "got '²' from character 2"),
    ],
)
def test_what_is_no_symbol_is_named_with_its_place(string: str, words: str) -> None:
    with pytest.raises(DataError, match=rf"smiles\.tokenize: .*{words}"):
        smiles.tokenize(string)


def test_files_are_padded_to_the_longest_of_both(tmp_path: Path) -> None:
    train, test = written(tmp_path, "CCl\n\n  C[nH]C  \r\n", "CCCCl")
    found = smiles.read(train, test)
    assert found.vocabulary.symbols == ("_", "C", "Cl", "[nH]")
    assert found.train.tolist() == [[1, 2, 0, 0], [1, 3, 1, 0]]
    assert found.test.tolist() == [[1, 1, 1, 2]]
    assert found.train_smiles == ("CCl", "C[nH]C")
    assert found.test_smiles == ("CCCCl",)
    assert smiles.read(train, test, length=6).train.shape == (2, 6)


def test_gzipped_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "train.smi.gz"
    path.write_bytes(gzip.compress(b"CO\nC\n"))
    assert smiles.read(path, path).test.tolist() == [[1, 2], [1, 0]]


def test_lines_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.smi, line 3: .*got '!' from character 3 of 'CC!'"):
        smiles.read(*written(tmp_path, "C\n\nCC!\n"))
    words = r"test\.smi, line 2: expected symbols of the vocabulary.*got 'Br' at position 1"
    with pytest.raises(DataError, match=words):
        smiles.read(*written(tmp_path, "CCC\n", "CC\nCBr\n"))
    with pytest.raises(DataError, match=r"test\.smi, line 1: expected at most length=2 .*got 3"):
        smiles.read(*written(tmp_path, "CC\n", "CCC\n"), length=2)
    with pytest.raises(DataError, match=r"test\.smi is empty"):
        smiles.read(*written(tmp_path, "CC\n", "\n \n"))
    with pytest.raises(DomainError, match="length must be positive, got 0"):
        smiles.read(*written(tmp_path, "CC\n"), length=0)
