"""Vocabularies: symbols to tokens and back, and errors that name symbol and position."""

import re

import pytest
import torch

from cflow.data import Vocabulary
from cflow.errors import DataError, DomainError, ShapeError

ATOMS = Vocabulary(("_", "C", "Cl", "[nH]"), pad="_")


def test_tokens_are_positions_of_symbols() -> None:
    assert len(ATOMS) == 4
    tokens = ATOMS.encode(["Cl", "C", "[nH]", "_", "_"])
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [2, 1, 3, 0, 0]
    assert ATOMS.decode(tokens) == "ClC[nH]"
    assert ATOMS.decode(tokens.to(torch.uint8)) == "ClC[nH]"
    assert Vocabulary(ATOMS.symbols).decode(tokens) == "ClC[nH]__"


def test_padding_is_left_out_wherever_it_stands() -> None:
    assert ATOMS.decode(torch.tensor([0, 1, 0, 2])) == "CCl"


def test_an_empty_sequence_has_integer_tokens() -> None:
    tokens = ATOMS.encode("")
    assert tokens.dtype == torch.int64
    assert tokens.shape == (0,)
    assert ATOMS.decode(tokens) == ""


def test_the_vocabulary_of_a_text_is_sorted() -> None:
    vocabulary = Vocabulary.of("to be, or not")
    assert "".join(vocabulary.symbols) == " ,benort"
    assert vocabulary.pad is None
    assert vocabulary.decode(vocabulary.encode("not to be")) == "not to be"
    assert Vocabulary.of(["Cl", "C", "Cl", "[nH]"], pad="_") == ATOMS
    assert hash(Vocabulary.of(["Cl", "C", "[nH]"], pad="_")) == hash(ATOMS)


def test_a_symbol_that_is_unknown_is_named_with_its_position() -> None:
    words = r"a file, line 7: .*'_' 'C' 'Cl' '\[nH\]', got 'Br' at position 1 \(2 of 4 symbols"
    with pytest.raises(DataError, match=words):
        ATOMS.encode(["C", "Br", "C", "F"], where="a file, line 7")
    with pytest.raises(DataError, match=r"Vocabulary\.encode: .*got 'l' at position 1"):
        ATOMS.encode("Cl")
    many = Vocabulary.of(map(chr, range(0x4E00, 0x4E00 + 5000)))
    with pytest.raises(DataError, match="and 4968 more, got 'a' at position 0"):
        many.encode("a")


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([1, 0, -1], r"between 0 and 3, got -1 at position 2 \(1 of 3 tokens are affected\)$"),
        ([1, 9, 4], r"got 9 at position 1 \(2 of 3 tokens are affected\)$"),
        ([4, 1], r"got 4 at position 0 .*that state is the mask"),
        ([1.0], "must be integers, got torch.float64; call .long"),
        ([True], "must be integers, got torch.bool"),
    ],
)
def test_tokens_out_of_range_are_named_with_their_position(tokens: list, words: str) -> None:
    with pytest.raises(DomainError, match=words):
        ATOMS.decode(torch.tensor(tokens))


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_batches_are_not_decoded(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=re.escape(f"got {shape}; decode the rows")):
        ATOMS.decode(torch.zeros(shape, dtype=torch.int64))


def test_bad_symbols_are_refused() -> None:
    with pytest.raises(DomainError, match=r"must be one or more, none of them empty, got \(\)"):
        Vocabulary.of("")
    with pytest.raises(DomainError, match=r"none of them empty, got \('a', ''\)"):
        Vocabulary(("a", ""))
    with pytest.raises(DomainError, match="must differ, got 'b' twice"):
        Vocabulary(("a", "b", "c", "b"))
    with pytest.raises(DomainError, match="padding symbol '_' must be one of"):
        Vocabulary(("a", "b"), pad="_")
    with pytest.raises(DomainError, match="has the padding symbol 'a' itself"):
        Vocabulary.of("abc", pad="a")
