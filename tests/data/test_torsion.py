"""Torsion angles: the RNA residues, the split by structure, and tables of angles in words."""

import math
from pathlib import Path

import pytest
import torch

from cflow.data import find, torsion
from cflow.errors import DataError, DomainError


def expect_rna() -> None:
    if find(torsion.RNA) is None:
        pytest.skip("the RNA angles are not on disk; name a folder with them in CFLOW_DATA")


def written(folder: Path, content: str) -> Path:
    (folder / "angles.tsv").write_text(content, encoding="utf-8")
    return folder / "angles.tsv"


def test_sizes_and_units() -> None:
    expect_rna()
    angles, structures = torsion.load()
    assert angles.shape == (9473, 7)
    assert angles.dtype == torch.float64
    assert (angles >= 0).all()
    assert (angles < 2 * math.pi).all()
    assert len(structures) == 9473
    assert len(set(structures)) == 113
    assert structures[0] == "402d"
    first = [-69.168933, 173.922722, 51.484039, 80.803534, -62.903735, 10.972630, -167.619661]
    torch.testing.assert_close(angles[0], torch.deg2rad(torch.tensor(first) % 360))


def test_the_split_that_counts_shares_no_structure() -> None:
    expect_rna()
    angles, structures = torsion.load()
    owner = dict(zip(map(tuple, angles.mul(1e5).round().long().tolist()), structures, strict=True))
    tested = []
    for seed in range(2):
        split = torsion.counted(seed=seed)
        assert sum(map(len, split)) == 9473
        owners = []
        for part, share in zip(split, (0.8, 0.1, 0.1), strict=True):
            assert len(part) == pytest.approx(share * 9473, abs=5)
            assert (part >= 0).all()
            assert (part < 2 * math.pi).all()
            # The spreading moves by less than 1e-8 radian: some keys change, none is another's.
            keys = map(tuple, part.mul(1e5).round().long().tolist())
            found = [owner[key] for key in keys if key in owner]
            assert len(found) > 0.98 * len(part)
            owners.append(set(found))
        assert not owners[0] & owners[1]
        assert not owners[0] & owners[2]
        assert not owners[1] & owners[2]
        tested.append(owners[2])
    assert tested[0] != tested[1]
    assert torch.equal(torsion.counted(seed=1).test, split.test)


FORMS = {
    "tabs": "1abc\t-90\t45\n1abc\t180\t0\n1e79\t60\t-360\n",
    "two columns of text": "1abc A -90 45\n1abc\u2003B 180 0\n1e79 C 60 -360\n",
    "commas and names": "chain,phi,psi\n1abc,-90,45\n1abc, 180,0\n1e79,60,-360\n",
    "semicolons and comments": "# a,b\n1abc;-90;45\n1abc;180;0\n\n1e79;60;-360",
}


@pytest.mark.parametrize("content", FORMS.values(), ids=FORMS.keys())
def test_tables_of_many_forms_are_read(content: str, tmp_path: Path) -> None:
    """The name of a structure may be a number as well, as 1e79 is."""
    angles, groups = torsion.read(written(tmp_path, content))
    torch.testing.assert_close(angles, torch.tensor([[1.5, 0.25], [1, 0], [1 / 3, 0]]) * math.pi)
    assert groups == ("1abc", "1abc", "1e79")


def test_groups_with_numbers_as_names_have_to_be_announced(tmp_path: Path) -> None:
    path = written(tmp_path, "1,-90,45\n1,180,0\n2,60,90\n")
    angles, groups = torsion.read(path, text_columns=1)
    assert angles.shape == (3, 2)
    assert groups == ("1", "1", "2")
    angles, groups = torsion.read(path)
    assert angles.shape == (3, 3)
    assert groups == ()


def test_radians_and_tiny_negative_angles(tmp_path: Path) -> None:
    path = written(tmp_path, "-1.5 6.28\n-1e-300 0\n")
    angles, _ = torsion.read(path, degrees=False)
    torch.testing.assert_close(angles, torch.tensor([[2 * math.pi - 1.5, 6.28], [0.0, 0.0]]))
    assert (angles < 2 * math.pi).all()
    assert (torsion.read(path)[0] < 2 * math.pi).all()


REFUSED = {
    "range": ("a,1\na,-360.5\n", r"line 2, column 2: expected an angle in \[-360, 360\] degrees"),
    "blank": ("a,1,2\na,,2\n", "line 2, column 2: expected an angle.*got a blank"),
    "nan": ("1 2\n3 nan\n", "line 2, column 2.*got 'nan'"),
    "text": ("1 2\n3 4\nb 6\n", "line 3, column 1.*got 'b'"),
    "text behind": ("1 2 a\n3 4 b\n", "line 1, column 3.*got 'a'"),
    "no angles": ("a b\nc d\n", r"no column of angles.*\['c', 'd'\] in line 2"),
    "lengths": ("a,1,2\nb,1\n", "line 2: expected 3 columns as in line 1, got 2"),
    "empty": ("# a\n", "is empty"),
    "damaged": ("1 2\n3 \0\n", "NUL"),
}


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_tables_are_refused_in_words(content: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        torsion.read(written(tmp_path, content))


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "10 20\n30 40\n")
    with pytest.raises(DataError, match=r"\[-6.28319, 6.28319\] radians; pass degrees=True"):
        torsion.read(path, degrees=False)
    with pytest.raises(DataError, match="no column of angles behind 2 columns of text"):
        torsion.read(path, text_columns=2)
    with pytest.raises(DataError, match="no column of groups"):
        torsion.counted(path)
    with pytest.raises(DomainError, match="one stays empty"):
        torsion.counted(written(tmp_path, "a,10\nb,20\n"))


def test_repeated_rows_count_once(tmp_path: Path) -> None:
    lines = [f"s{k // 5},{k}.5,{2 * k}" for k in range(100)]
    split = torsion.counted(written(tmp_path, "\n".join(lines + lines[:50])))
    assert [len(part) for part in split] == [80, 10, 10]
    moved = torch.cat(list(split)).rad2deg()
    assert (moved[:, 0].sort().values - torch.arange(100) - 0.5).abs().max() <= 0.05
