"""Texts: the published counts of tiny Shakespeare, the split, windows, and files of one's own."""

import gzip
from pathlib import Path

import pytest
import torch

from cflow.data import find, text
from cflow.errors import DataError, DomainError, ShapeError

LINE = "Ein Blümchen\r\nblüht, 3-mal.\n"


def written(folder: Path, content: str) -> Path:
    (folder / "text.txt").write_bytes(content.encode())
    return folder / "text.txt"


def test_the_counts_of_tiny_shakespeare() -> None:
    if find(text.SHAKESPEARE) is None:
        pytest.skip("tiny Shakespeare is not on disk; name a folder with it in CFLOW_DATA")
    train, test, vocabulary = text.shakespeare()
    assert len(vocabulary) == 65
    assert (len(train), len(test)) == (1_003_854, 111_540)
    assert len(train) + len(test) == 1_115_394
    assert train.dtype == test.dtype == torch.int64
    assert torch.bincount(train, minlength=65).min() > 0
    assert vocabulary.decode(train[:14]) == "First Citizen:"
    assert vocabulary.decode(test[-8:]) == "waking.\n"


def test_a_text_is_taken_as_it_stands_and_split_in_order(tmp_path: Path) -> None:
    path = written(tmp_path, LINE)
    train, test, vocabulary = text.read(path, share=0.5)
    assert len(train) == len(LINE) // 2
    assert vocabulary.decode(train) + vocabulary.decode(test) == LINE
    assert list(vocabulary.symbols) == sorted(set(LINE))
    packed = tmp_path / "text.txt.gz"
    packed.write_bytes(gzip.compress(LINE.encode()))
    again = text.shakespeare(packed)
    assert again.vocabulary == vocabulary
    assert len(again.train) == int(0.9 * len(LINE))
    assert torch.equal(torch.cat(again[:2]), torch.cat([train, test]))


def test_the_vocabulary_is_that_of_the_whole_text(tmp_path: Path) -> None:
    train, test, vocabulary = text.read(written(tmp_path, "aaaaaaaaab"))
    assert (train.max().item(), test.tolist(), len(vocabulary)) == (0, [1], 2)


def test_windows_follow_each_other_and_drop_the_rest() -> None:
    cut = text.windows(torch.arange(11), 3)
    assert cut.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert text.windows(torch.arange(4), 4).tolist() == [[0, 1, 2, 3]]
    assert text.windows(torch.arange(10)[::2], 2).tolist() == [[0, 2], [4, 6]]


@pytest.mark.parametrize("length", [0, -1, 5])
def test_windows_of_no_length_are_refused(length: int) -> None:
    with pytest.raises(DomainError, match=f"between 1 and the 4 tokens.*got {length}"):
        text.windows(torch.arange(4), length)


def test_windows_of_a_batch_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"one sequence \(tokens,\), got \(2, 4\)"):
        text.windows(torch.zeros(2, 4), 2)


def test_bad_texts_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds 1 characters, too few"):
        text.read(written(tmp_path, "a"))
    with pytest.raises(DataError, match="holds 0 characters, too few"):
        text.read(written(tmp_path, ""))
    with pytest.raises(DataError, match="the character NUL"):
        text.read(written(tmp_path, "ab\0"))
    with pytest.raises(DataError, match=r"cannot read .*UTF-8"):
        text.read(tmp_path / "nowhere.txt")
    (tmp_path / "latin.txt").write_bytes("Blümchen".encode("latin-1"))
    with pytest.raises(DataError, match=r"cannot read .*UTF-8"):
        text.read(tmp_path / "latin.txt")


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_shares_beyond_the_text_are_refused(share: float, tmp_path: Path) -> None:
    with pytest.raises(DomainError, match="share must lie between 0 and 1"):
        text.read(written(tmp_path, LINE), share=share)
