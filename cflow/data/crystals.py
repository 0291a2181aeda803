"""Crystals: atoms in a cell that repeats in space, so that their places are points of a torus.

    atom = fractional coordinates f in [0, 1)^3, a point of the 3-torus;  place = f @ cell

| set | atoms in a cell | what differs | validation | test |
|---|---|---|---|---|
| perov_5 | 5 | elements, cubic cells | 3787 | 3785 |
| carbon_24 | 6 to 24, all carbon | places and cells | 2032 | 2030 |

The training parts are not offered here. The files hold a CIF text for every crystal; `parse` reads
the kind that they are: symmetry P 1, in which every atom of the cell is written down.

Source: Castelli et al. (2012), New cubic perovskites for one- and two-photon water splitting,
Energy and Environmental Science 5; Pickard (2020), AIRSS data for carbon, Materials Cloud
2020.0026. Parts as in Xie et al. (2022), Crystal diffusion variational autoencoder, arXiv
2110.06197; copies in txie-93/cdvae, MIT.
"""

import csv
import io
import re
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cflow.data.delimited import is_number, text
from cflow.data.fetch import RemoteFile, fetch, find
from cflow.errors import DataError, DomainError, expect_trailing

__all__ = ["ELEMENTS", "FILES", "PACKED", "Crystals", "cell", "load", "parse"]

ADDRESS = (
    "https://raw.githubusercontent.com/txie-93/cdvae/f857f598d6f6cca5dc1ea0582d228f12dcc2c2ea/data/"
)

# Checksums of the original file and of its gzipped copy, which is read where it lies on disk.
CHECKSUMS = {
    "perov_5/val": (
        "326f401219901270374b71e2faff63df3a29a99fd26f469993b9f476b693daf2",
        "784e89dc6b8879382b2b25cf3cc0c75a3c1160f8242b2090006931a24a0f5c45",
    ),
    "perov_5/test": (
        "a85878c685037f0a578257f6d4fcdde00e968dbab73c5f1e90ecef65218513f6",
        "b635a7e4803ce8abc147da102a5ac5df1a2c9fc74fc4854afb7eac54c839420c",
    ),
    "carbon_24/val": (
        "36c00689cd63073c954a58bc6ed6e2adb7aeed5a630c994970959a1babffd50e",
        "bf1d3e91bbd70e0c84b3be67c19ddcc796331b797a08a9e275691a3b7a564dec",
    ),
    "carbon_24/test": (
        "386b17c08816f434818d51e46687bf72ff3f92348f3ba24823e4758f1fe8a969",
        "f51a69674f1d15fb06fa8be60f09abbda60283f77fd1a21d44d6ec2c9a039f65",
    ),
}
FILES = {
    name: RemoteFile(f"crystals/{name}.csv", f"{ADDRESS}{name}.csv", plain)
    for name, (plain, _) in CHECKSUMS.items()
}
PACKED = {
    name: RemoteFile(f"crystals/{name}.csv.gz", f"{ADDRESS}{name}.csv", packed)
    for name, (_, packed) in CHECKSUMS.items()
}

SYMBOLS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se "
    "Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy "
    "Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf "
    "Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"
)
ELEMENTS = tuple(SYMBOLS.split())
NUMBERS = {symbol: k for k, symbol in enumerate(ELEMENTS, start=1)}
EDGES = ("_cell_length_a", "_cell_length_b", "_cell_length_c")
CORNERS = ("_cell_angle_alpha", "_cell_angle_beta", "_cell_angle_gamma")
SYMMETRY = ("_symmetry_space_group_name_h-m", "_space_group_name_h-m_alt")
COORDINATES = ("_atom_site_fract_x", "_atom_site_fract_y", "_atom_site_fract_z")
SPECIES, OCCUPANCY = "_atom_site_type_symbol", "_atom_site_occupancy"
VALUE = re.compile(r"'[^']*'(?=\s|$)|\"[^\"]*\"(?=\s|$)|[^\s]+")


class Crystals(NamedTuple):
    """Hold crystals, padded to the largest number of atoms among them.

    Attributes:
        fractional: Fractional coordinates in [0, 1), `(*batch, atoms, 3)`; zero where padded.
        species: Atomic numbers, int64, `(*batch, atoms)`; zero where padded.
        lengths: Edges of the cell in angstrom, `(*batch, 3)`.
        angles: Angles of the cell in degrees, `(*batch, 3)`: alpha, beta and gamma.
    """

    fractional: Tensor
    species: Tensor
    lengths: Tensor
    angles: Tensor


def load(name: Literal["perov_5", "carbon_24"], part: Literal["val", "test"]) -> Crystals:
    """Load a part of a set of crystals.

    Args:
        name: The set.
        part: Validation or test.

    Returns:
        The crystals in the order of the file, float64. Atoms of perov_5 stand in the order of the
        file as well, which is no order of the elements.

    Raises:
        DomainError: There is no such set or part.
        DataError: The file is damaged, or its address cannot be reached.
        MissingExtraError: The file has to be fetched and pooch is not installed.

    Example:
        >>> list(FILES)
        ['perov_5/val', 'perov_5/test', 'carbon_24/val', 'carbon_24/test']
        >>> load("perov_5", "test").fractional.shape  # doctest: +SKIP
        torch.Size([3785, 5, 3])
    """
    key = f"{name}/{part}"
    if key not in FILES:
        raise DomainError(f"crystals.load: there is no part {key!r}; known are {list(FILES)}")
    packed = find(PACKED[key]) is not None and find(FILES[key]) is None
    content = text("crystals.load", fetch(PACKED[key] if packed else FILES[key]))
    found = [parse(row["cif"]) for row in csv.DictReader(io.StringIO(content, newline=""))]
    atoms = max(len(crystal.species) for crystal in found)
    short = [atoms - len(crystal.species) for crystal in found]
    pad = torch.nn.functional.pad
    return Crystals(
        torch.stack([pad(c.fractional, (0, 0, 0, k)) for c, k in zip(found, short, strict=True)]),
        torch.stack([pad(c.species, (0, k)) for c, k in zip(found, short, strict=True)]),
        torch.stack([crystal.lengths for crystal in found]),
        torch.stack([crystal.angles for crystal in found]),
    )


def parse(cif: str) -> Crystals:
    """Read one crystal from a CIF text of symmetry P 1.

    Read are the items of the cell, the name of the space group where there is one, and the loop of
    atoms, one line for each; all else is passed over. Fractional coordinates are taken modulo 1.

    Args:
        cif: The text.

    Returns:
        The crystal, without batch axes, float64.

    Raises:
        DataError: An item of the cell or the atoms are missing or no numbers, an element is
            unknown, the symmetry is another one, or a place is not fully occupied.

    Example:
        >>> cif = '''
        ... _symmetry_space_group_name_H-M   'P 1'
        ... _cell_length_a   4.2
        ... _cell_length_b   4.2
        ... _cell_length_c   4.2
        ... _cell_angle_alpha   90
        ... _cell_angle_beta   90
        ... _cell_angle_gamma   90
        ... loop_
        ...  _atom_site_type_symbol
        ...  _atom_site_fract_x
        ...  _atom_site_fract_y
        ...  _atom_site_fract_z
        ...   Cs  0.0  0.0  0.0
        ...   Cl  0.5  -0.5  1.5
        ... '''
        >>> crystal = parse(cif)
        >>> crystal.species
        tensor([55, 17])
        >>> crystal.fractional[1].tolist()
        [0.5, 0.5, 0.5]
    """
    items, atoms = _items(cif), _atoms(cif)
    group = next((items[name] for name in SYMMETRY if name in items), "P 1")
    if group.replace(" ", "").upper() != "P1":
        raise DataError(
            f"crystals.parse: expected symmetry P 1, in which every atom is written down, got "
            f"{group!r}; expand the symmetry by a library for crystals first"
        )
    missing = [name for name in (*EDGES, *CORNERS) if name not in items]
    if missing:
        raise DataError(f"crystals.parse: the text has no {missing[0]}; expected all six items")
    for atom in atoms:
        if _number(atom.get(OCCUPANCY, "1"), OCCUPANCY) != 1:
            raise DataError(
                f"crystals.parse: expected places that one atom occupies, got the occupancy "
                f"{atom[OCCUPANCY]}"
            )
    places = [[_number(atom[name], name) for name in COORDINATES] for atom in atoms]
    fractional = torch.remainder(torch.tensor(places, dtype=torch.float64), 1)
    measure = lambda names: torch.tensor(
        [_number(items[name], name) for name in names], dtype=torch.float64
    )
    return Crystals(
        torch.where(fractional < 1, fractional, 0.0),  # a tiny negative one rounds to 1 itself
        torch.tensor([_element(atom[SPECIES]) for atom in atoms]),
        measure(EDGES),
        measure(CORNERS),
    )


def cell(lengths: Tensor, angles: Tensor) -> Tensor:
    """Return the edges of cells as vectors: the first along x, the second in the plane of x and y.

        a = (a, 0, 0),    b = (b cos gamma, b sin gamma, 0),    c = c (cos beta, u, w),
        u = (cos alpha - cos beta cos gamma) / sin gamma,    w = sqrt(1 - cos^2 beta - u^2)

    Args:
        lengths: Edges in angstrom, `(*batch, 3)`.
        angles: alpha, beta and gamma in degrees, `(*batch, 3)`; three that no cell has give NaN.

    Returns:
        Rows a, b and c in angstrom, `(*batch, 3, 3)`, so that places are `fractional @ cell`.

    Raises:
        ShapeError: lengths or angles do not end in three.

    Example:
        >>> cell(torch.tensor([2.0, 3.0, 4.0]), torch.tensor([90.0, 90.0, 90.0])).det()
        tensor(24.)
    """
    expect_trailing("crystals.cell", "lengths", lengths, (3,))
    expect_trailing("crystals.cell", "angles", angles, (3,))
    cosines = torch.deg2rad(angles).cos()
    alpha, beta, gamma = cosines.unbind(-1)
    sine, zero = torch.deg2rad(angles[..., 2]).sin(), torch.zeros_like(alpha)
    u = (alpha - beta * gamma) / sine
    rows = [
        torch.stack([torch.ones_like(alpha), zero, zero], dim=-1),
        torch.stack([gamma, sine, zero], dim=-1),
        torch.stack([beta, u, (1 - beta**2 - u**2).sqrt()], dim=-1),
    ]
    return lengths[..., None] * torch.stack(rows, dim=-2)


def _items(cif: str) -> dict[str, str]:
    """Return the items that stand with their value in one line, by lower-case name."""
    pairs = [VALUE.findall(line) for line in cif.splitlines() if line.lstrip().startswith("_")]
    return {pair[0].lower(): pair[1].strip("'\"") for pair in pairs if len(pair) == 2}


def _atoms(cif: str) -> list[dict[str, str]]:
    """Return what the loop of atoms says of each of them, by lower-case name."""
    lines = [line.strip() for line in cif.splitlines()]
    names = [line.lower() for line in lines if line.lower().startswith("_atom_site_")]
    missing = [name for name in (SPECIES, *COORDINATES) if name not in names]
    if missing:
        raise DataError(f"crystals.parse: the text has no loop of atoms with {missing[0]}")
    begin = 1 + max(k for k, line in enumerate(lines) if line.lower().startswith("_atom_site_"))
    atoms = []
    for line in lines[begin:]:
        if not line or line.startswith(("#", "_", "loop_", "data_")):
            break
        values = VALUE.findall(line)
        if len(values) != len(names):
            raise DataError(
                f"crystals.parse: expected {len(names)} values for an atom, got {len(values)}: "
                f"{line!r}"
            )
        atoms.append(dict(zip(names, values, strict=True)))
    if not atoms:
        raise DataError("crystals.parse: the loop of atoms is empty")
    return atoms


def _number(value: str, name: str) -> float:
    plain = re.sub(r"\(\d+\)$", "", value)  # its standard uncertainty, as in 4.05(2)
    if not is_number(plain) or not abs(float(plain)) < float("inf"):
        raise DataError(f"crystals.parse: expected a finite number for {name}, got {value!r}")
    return float(plain)


def _element(symbol: str) -> int:
    plain = re.sub(r"[\d.]*[+-]?$", "", symbol)  # its charge, as in Ti4+
    if plain not in NUMBERS:
        raise DataError(f"crystals.parse: there is no element {symbol!r}")
    return NUMBERS[plain]
