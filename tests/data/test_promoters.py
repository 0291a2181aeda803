"""DNA of two classes: the published counts, words that overlap, and lines that are named."""

import gzip
import re
from pathlib import Path

import pytest
import torch

from cflow.data import find, promoters
from cflow.errors import DataError

CORE = re.compile("CCA[CG][CT]AG[AG][GT]GGC")  # what CTCF binds


def written(folder: Path, content: str) -> Path:
    (folder / "dna.tsv").write_text(content)
    return folder / "dna.tsv"


def test_the_counts_of_the_sample() -> None:
    if find(promoters.PROMOTERS) is None:
        pytest.skip("the sample of DNABERT is not on disk; name a folder with it in CFLOW_DATA")
    tokens, labels, vocabulary = promoters.promoters()
    assert tokens.shape == (1000, 101)
    assert tokens.dtype == labels.dtype == torch.int64
    assert labels.bincount().tolist() == [500, 500]
    assert vocabulary.symbols == ("A", "C", "G", "T")
    strings = [vocabulary.decode(row) for row in tokens]
    assert strings[0].startswith("GTGGGGAGGGAGG")
    assert len(set(strings)) == 1000
    other = [string[::-1].translate(str.maketrans("ACGT", "TGCA")) for string in strings]
    both = zip(strings, other, strict=True)
    bound = torch.tensor([bool(CORE.search(f"{a} {b}")) for a, b in both])
    assert labels[bound].bincount(minlength=2).tolist() == [0, 125]


def test_words_are_joined(tmp_path: Path) -> None:
    tokens, labels, vocabulary = promoters.promoters(
        written(tmp_path, "sequence\tlabel\nACG CGT GTT\t1\n\nACGTA\t0\nAC CG GT TT\t12\n")
    )
    assert [vocabulary.decode(row) for row in tokens] == ["ACGTT", "ACGTA", "ACGTT"]
    assert labels.tolist() == [1, 0, 12]


def test_names_of_columns_may_be_absent_and_files_gzipped(tmp_path: Path) -> None:
    path = tmp_path / "dna.tsv.gz"
    path.write_bytes(gzip.compress(b"AC CG\t1\r\n"))
    assert promoters.promoters(path).tokens.tolist() == [[0, 1, 2]]


REFUSED = {
    "no overlap": ("ACG CGT\t0\nACG CTT\t1\n", "line 2: expected word 2 .*'CTT' behind 'ACG'"),
    "a longer word": ("ACG CGTA\t0\n", "line 1: expected word 2 .*got 'CGTA' behind 'ACG'"),
    "a gap": ("ACG CGT TTA\t0\n", "line 1: expected word 3 to repeat word 2"),
    "a letter": ("sequence\tlabel\nACG CGN\t0\n", "line 2: .*'T', got 'N' at position 3"),
    "small letters": ("acg cgt\t0\n", "line 1: .*got 'a' at position 0"),
    "lengths": ("ACG CGT\t0\nACG\t0\n", "line 2: expected 4 bases as in line 1, got 3"),
    "a label": ("ACG\t0\nACG\t0.5\n", "line 2: expected a label, .*got '0.5'"),
    "a negative label": ("ACG\t-1\n", "line 1: expected a label, .*got '-1'"),
    "no label": ("ACG\t\n", "line 1: expected a label, .*got ''"),
    "no sequence": ("\t1\n", "line 1: expected a sequence, got a blank"),
    "one column": ("ACG\nACG\n", r"a sequence, a tab and a label, got \['ACG'\]"),
    "three columns": ("ACG\t1\t2\n", "a sequence, a tab and a label"),
    "columns": ("ACG\t1\nACG\n", "line 2: expected 2 columns"),
    "names alone": ("sequence\tlabel\n", "got the names of the columns alone"),
    "empty": ("\n", "is empty"),
}


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_files_are_refused_in_words(content: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"promoters: .*dna\.tsv.*{words}"):
        promoters.promoters(written(tmp_path, content))
