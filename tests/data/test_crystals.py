"""Crystals: volumes and formulas of the files are recovered, and other CIF texts are refused."""

import csv
import gzip
import io
import re
from collections import Counter

import pytest
import torch

from cflow.data import crystals, fetch, find
from cflow.errors import DataError, DomainError, ShapeError

SIZES = {
    "perov_5/val": (3787, 5),
    "perov_5/test": (3785, 5),
    "carbon_24/val": (2032, 24),
    "carbon_24/test": (2030, 24),
}
SALT = """# written by hand
data_CsCl
_symmetry_space_group_name_H-M   'P 1'
_cell_length_a   4.12(3)
_cell_length_b   4.2
_cell_length_c   4.3
_cell_angle_alpha   80
_cell_angle_beta   90
_cell_angle_gamma   100
_chemical_formula_sum   'Cs1 Cl1'
loop_
 _symmetry_equiv_pos_site_id
 _symmetry_equiv_pos_as_xyz
  1  'x, y, z'
loop_
 _atom_site_type_symbol
 _atom_site_label
 _atom_site_fract_x
 _atom_site_fract_y
 _atom_site_fract_z
 _atom_site_occupancy
  Cs+  'Cs 0'  0.0  -1e-300  1.0  1
  Cl-  Cl1  0.5  -0.25  1.75  1.0
"""


def texts(key: str) -> list[str]:
    file = crystals.PACKED[key]
    if find(file) is None:
        pytest.skip(f"{file.path} is not on disk; name a folder that holds it in CFLOW_DATA")
    with gzip.open(fetch(file), "rt", newline="") as opened:
        return [row["cif"] for row in csv.DictReader(io.StringIO(opened.read(), newline=""))]


@pytest.mark.parametrize("key", list(SIZES))
def test_volumes_and_formulas_are_those_of_the_file(key: str) -> None:
    cifs = texts(key)
    found = crystals.load(*key.split("/"))  # type: ignore[arg-type]
    assert found.species.shape == SIZES[key]
    assert found.fractional.shape == (*SIZES[key], 3)
    assert found.fractional.dtype == found.lengths.dtype == torch.float64
    assert ((found.fractional >= 0) & (found.fractional < 1)).all()
    assert (found.fractional[found.species == 0] == 0).all()
    stated = [float(re.search(r"_cell_volume\s+(\S+)", cif)[1]) for cif in cifs]  # type: ignore[index]
    volume = crystals.cell(found.lengths, found.angles).det()
    torch.testing.assert_close(volume, torch.tensor(stated), rtol=1e-6, atol=0)
    for cif, species in zip(cifs, found.species.tolist(), strict=True):
        formula = re.search(r"_chemical_formula_sum\s+('[^']*'|\S+)", cif)[1]  # type: ignore[index]
        parts = re.findall(r"([A-Z][a-z]?)(\d*)", formula)
        wanted = {crystals.NUMBERS[symbol]: int(count or 1) for symbol, count in parts}
        assert Counter(k for k in species if k) == wanted


def test_a_text_is_read() -> None:
    crystal = crystals.parse(SALT)
    assert crystal.species.tolist() == [55, 17]
    assert crystal.fractional.tolist() == [[0, 0, 0], [0.5, 0.75, 0.75]]
    assert crystal.lengths.tolist() == [4.12, 4.2, 4.3]
    assert crystal.angles.tolist() == [80, 90, 100]
    assert len(crystals.ELEMENTS) == 118
    assert crystals.NUMBERS["Og"] == 118
    assert crystals.NUMBERS["Fe"] == 26


def test_a_cell_has_its_lengths_and_angles() -> None:
    lengths = torch.rand(4, 5, 3) + 1
    angles = 60 + 50 * torch.rand(4, 5, 3)
    rows = crystals.cell(lengths, angles)
    torch.testing.assert_close(rows.norm(dim=-1), lengths)
    a, b, c = torch.nn.functional.normalize(rows, dim=-1).unbind(-2)
    between = torch.stack([(b * c).sum(-1), (a * c).sum(-1), (a * b).sum(-1)], dim=-1)
    torch.testing.assert_close(between.acos().rad2deg(), angles)
    assert (rows.det() > 0).all()
    assert crystals.cell(lengths.float(), angles.float()).dtype == torch.float32


REFUSED = {
    "symmetry": ("'P 1'", "'P m -3 m'", "expected symmetry P 1.*'P m -3 m'"),
    "no edge": ("_cell_length_b   4.2\n", "", "no _cell_length_b"),
    "text": ("0.5", "half", "expected a finite number for _atom_site_fract_x, got 'half'"),
    "nan": ("-0.25", "nan", "got 'nan'"),
    "occupancy": ("1.0\n", "0.5\n", "occupancy 0.5"),
    "element": ("Cl-", "Qq", "no element 'Qq'"),
    "values": ("  Cl1", "", "expected 6 values for an atom, got 5"),
    "no symbols": (" _atom_site_type_symbol\n", "", "no loop of atoms with _atom_site_type_symbol"),
    "no atoms": (SALT[SALT.index("  Cs+") :], "", "the loop of atoms is empty"),
}


@pytest.mark.parametrize(("old", "new", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_other_texts_are_refused_in_words(old: str, new: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        crystals.parse(SALT.replace(old, new))


@pytest.mark.unchecked
def test_bad_arguments_are_refused() -> None:
    with pytest.raises(DomainError, match=r"no part 'perov_5/train'; known are .*'carbon_24/val'"):
        crystals.load("perov_5", "train")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"\(2,\)"):
        crystals.cell(torch.ones(2), torch.ones(3))
