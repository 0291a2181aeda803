"""Events on earth: the files, their places on the sphere, the split that counts, bad tables."""

import gzip
import math
from pathlib import Path

import pytest
import torch

from cflow.data import earth, find
from cflow.data.grouped import blocks, distinct
from cflow.errors import DataError, DomainError, ShapeError

SIZES = {"volcano": (827, 267), "earthquake": (6120, 5447), "fire": (12809, 12802)}


def loaded(name: str) -> torch.Tensor:
    if find(earth.FILES[name]) is None:
        pytest.skip(f"{name} is not on disk; name a folder that holds it in CFLOW_DATA")
    return earth.load(name)


def written(folder: Path, content: str, name: str = "places.csv") -> Path:
    (folder / name).write_text(content, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("name", list(SIZES))
def test_sizes_and_units(name: str) -> None:
    degrees = loaded(name)
    assert degrees.dtype == torch.float64
    assert (len(degrees), len(distinct(degrees))) == SIZES[name]
    x = earth.to_sphere(degrees)
    torch.testing.assert_close(x.norm(dim=1), torch.ones(len(x)))
    torch.testing.assert_close(earth.to_degrees(x), degrees, rtol=0, atol=1e-12)
    first = {"volcano": [-30.2, -178.47], "earthquake": [31.1, 35.5], "fire": [-25.088, 152.358]}
    assert degrees[0].tolist() == first[name]


def test_points_lie_where_they_should() -> None:
    degrees = torch.tensor([[0.0, 0.0], [0.0, 90.0], [90.0, 12.0], [-30.0, 180.0]])
    wanted = torch.tensor(
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [-math.sqrt(0.75), 0.0, -0.5]]
    )
    torch.testing.assert_close(earth.to_sphere(degrees), wanted, rtol=0, atol=1e-15)
    torch.testing.assert_close(earth.to_degrees(3 * wanted)[:2], degrees[:2])
    assert earth.to_sphere(torch.zeros(2, 5, 2).float()).dtype == torch.float32
    assert earth.to_sphere(torch.tensor([10.0, 370.0])).shape == (3,)
    torch.testing.assert_close(
        earth.to_sphere(torch.tensor([10.0, 350.0])), earth.to_sphere(torch.tensor([10.0, -10.0]))
    )


@pytest.mark.parametrize("name", list(SIZES))
@pytest.mark.parametrize("seed", [0, 1])
def test_the_split_that_counts_shares_no_place_and_no_block(name: str, seed: int) -> None:
    degrees = loaded(name)
    split = earth.counted(degrees, seed=seed)
    rows, kept = sum(map(len, split)), SIZES[name][1]
    assert rows == kept
    for part, share in zip(split, (0.8, 0.1, 0.1), strict=True):
        assert len(part) == pytest.approx(share * rows, abs=3)
        torch.testing.assert_close(part.norm(dim=1), torch.ones(len(part)))
    # Rounded as the file is, they are the places of the file, each in one part.
    places = [earth.to_degrees(part).mul(1000).round().long() for part in split]
    file = {tuple(place) for place in degrees.mul(1000).round().long().tolist()}
    found = [{tuple(place) for place in part.tolist()} for part in places]
    assert len(file & set.union(*found)) >= rows - 5  # one at longitude 180 has two names
    numbers = [set(blocks(part / 1000).tolist()) for part in places]
    for k in range(3):
        for other in range(k):
            assert not found[k] & found[other]
            assert not numbers[k] & numbers[other]
    again = earth.counted(degrees, seed=seed)
    assert all(torch.equal(a, b) for a, b in zip(split, again, strict=True))
    assert not torch.equal(split.test, earth.counted(degrees, seed=seed + 2).test)


def test_random_rows_of_volcanoes_share_places() -> None:
    """The reason for the other split: most test rows are copies of training rows."""
    from cflow.data import random_split

    train, _, test = random_split(loaded("volcano"))
    copies = (test[:, None] == train).all(-1).any(1)
    assert copies.double().mean() > 0.7


def test_one_place_under_two_names_counts_once() -> None:
    grid = torch.cartesian_prod(torch.arange(-85.0, 90, 10), torch.arange(-175.0, 180, 10))
    doubled = torch.cat([grid, grid + torch.tensor([0.0, 360.0])])
    poles = torch.tensor([[90.0, 3.0], [90.0, 57.0], [-90.0, 0.0]])
    split = earth.counted(torch.cat([doubled, poles]))
    assert sum(map(len, split)) == len(grid) + 2
    x = torch.cat(list(split))
    assert torch.isfinite(x).all()  # also what left a pole
    north = x[x[:, 2].argmax()]
    assert math.acos(north[2]) < math.radians(0.5)


FORMS = {
    "no header": "41.5,-70.25\n-42,10\n",
    "names in another order": "id,LON,Lat\n1,-70.25,41.5\n2,10,-42\n",
    "quotes and comments": '# whales\n\n"Longitude", "Latitude"\n "-70.25" , 41.5\n10,-42\n\n',
    "windows": "\ufefflatitude,lng\r\n41.5,-70.25\r\n-42,10\r\n",
    "more columns": "41.5,-70.25,humpback,\n-42,10,,x\n",
    "no last line end": "lat,long,what\n41.5,-70.25,\n-42,1e1,a",
}


@pytest.mark.parametrize("content", FORMS.values(), ids=FORMS.keys())
def test_tables_of_many_forms_are_read(content: str, tmp_path: Path) -> None:
    found = earth.read(written(tmp_path, content))
    assert found.tolist() == [[41.5, -70.25], [-42.0, 10.0]]
    (tmp_path / "places.csv.gz").write_bytes(gzip.compress(content.encode()))
    assert torch.equal(earth.read(tmp_path / "places.csv.gz"), found)


REFUSED = {
    "north of the pole": (
        "1,2\n90.5,170\n",
        r"line 2, column 1.*latitude in \[-90, 90\].*got 90.5",
    ),
    "swapped": ("# a\n-122.4,37.8\n", r"line 2, .*got -122.4; are the columns swapped\?"),
    "longitude": ("1,2\n3,-180.01\n", r"line 2, column 2.*longitude in \[-180, 360\].*got -180.01"),
    "blank": ("1,2\n3,\n", r"line 2, column 2: expected a longitude.*got a blank"),
    "nan": ("lon,lat\n3,nan\n", r"line 2, column 2: expected a latitude.*got 'nan'"),
    "inf": ("1,-inf\n1,2\n", "line 1, column 2.*got '-inf'"),
    "text": ("1,2\n3,4\nfive,6\n", "line 3, column 1.*got 'five'"),
    "underscore": ("1,1_0\n", "line 1, column 2.*got '1_0'"),
    "decimal commas": ("12,5,33,1\n12,33,1\n", "line 2: expected 4 columns as in line 1, got 3"),
    "one column": ("lat;lon\n1;2\n", r"has one column.*'lat;lon' in line 1"),
    "one value": ("1,2\n3\n", "line 2: expected 2 columns as in line 1, got 1"),
    "empty": ("", "is empty"),
    "only comments": ("# nothing\n\n", "is empty"),
    "only names": ("lat,lon\n", "is empty: it names its columns"),
    "unknown names": ("x,y\n1,2\n", r"line 1: .*one latitude among them \(latitude, lat\).*'x'"),
    "two latitudes": ("lat,latitude,lon\n1,2,3\n", "one latitude among them"),
    "damaged": ("1,2\n\0\0,4\n", "holds the character NUL"),
    "open quote": ('1,"2\n3,4\n', "line 1: a quote does not end"),
}


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_tables_are_refused_in_words(content: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words) as raised:
        earth.read(written(tmp_path, content))
    assert str(raised.value).startswith("earth.read: ")
    assert "places.csv" in str(raised.value)


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*missing.csv"):
        earth.read(tmp_path / "missing.csv")
    with pytest.raises(DataError, match="cannot read"):
        earth.read(tmp_path)
    (tmp_path / "a.csv").write_bytes(b"\x80\x81\xff")
    with pytest.raises(DataError, match="as text in UTF-8"):
        earth.read(tmp_path / "a.csv")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"1,2\n" * 1000)[:-12])
    with pytest.raises(DataError, match="cannot read"):
        earth.read(tmp_path / "a.csv.gz")


def test_bad_arguments_are_refused(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(DomainError, match=r"no set 'flood'; known are .*'fire'"):
        earth.load("flood")
    with pytest.raises(ShapeError, match=r"\(5, 3\)"):
        earth.to_sphere(torch.zeros(5, 3))
    with pytest.raises(DomainError, match=r"got 100 at longitude 20; are the columns swapped"):
        earth.to_sphere(torch.tensor([[1.0, 2.0], [100.0, 20.0]]))
    with pytest.raises(DomainError, match="got nan"):
        earth.to_sphere(torch.tensor([math.nan, 2.0]))
    with pytest.raises(DomainError, match="floating"):
        earth.to_sphere(torch.tensor([1, 2]))
    with pytest.raises(ShapeError, match=r"\(5, 2\)"):
        earth.to_degrees(torch.zeros(5, 2))
    with pytest.raises(ShapeError, match=r"\(2,\)"):
        earth.counted(torch.zeros(2))
    with pytest.raises(DomainError, match="one stays empty"):
        earth.counted(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    monkeypatch.setenv("CFLOW_DATA", str(tmp_path))
    (tmp_path / "earth_fire").mkdir()
    written(tmp_path / "earth_fire", "1,2\n", "fire.csv")
    with pytest.raises(DataError, match="damaged"):
        earth.load("fire")
