"""Where on the earth things happen: volcanic eruptions, earthquakes, fires; and tables of your own.

    x = (cos lat cos lon, cos lat sin lon, sin lat),    a point of the unit sphere

Densities are in nats against the area of that sphere, so the uniform law has a negative
log-likelihood of log 4 pi = 2.531.

| set | rows | distinct | cells of 10 degrees |
|---|---|---|---|
| volcano | 827 | 267 | 66 |
| earthquake | 6120 | 5447 | 203 |
| fire | 12809 | 12802 | 144 |

Published figures split these rows at random (`random_split`). But a volcano erupts more than once,
and then its place is in the training part and in the test part: on that split a spike on every
training row is the best model of eruptions. `counted` gives the split on which a figure counts.

Source: NOAA National Centers for Environmental Information (volcanic eruptions, significant
earthquakes), NASA FIRMS (active fires); copies in oxcsml/riemannian-score-sde. Used first by
Mathieu and Nickel (2020), Riemannian continuous normalizing flows, arXiv 2006.10605.
"""

import os

import torch
from torch import Generator, Tensor

from cflow.data.delimited import Row, is_number, number, rows
from cflow.data.digits import Split
from cflow.data.fetch import RemoteFile, fetch
from cflow.data.grouped import blocks, distinct, grouped_split, jitter, resolution
from cflow.errors import DataError, DomainError, ShapeError, expect_floating, known

__all__ = ["FILES", "counted", "load", "read", "to_degrees", "to_sphere"]

ADDRESS = (
    "https://raw.githubusercontent.com/oxcsml/riemannian-score-sde/"
    "b35b739464ca8264e418e400301f5f45cb7a16b3/data/"
)

FILES = {
    "volcano": RemoteFile(
        "earth_volcano/volerup.csv",
        ADDRESS + "volerup.csv",
        "f7bbaf32a412f5fe82350f48e0c55100be260803969c16557343f687fd0593fc",
    ),
    "earthquake": RemoteFile(
        "earth_earthquake/quakes_all.csv",
        ADDRESS + "quakes_all.csv",
        "3e5e1a10fb2faf1899106264289334037d039f00f5265d13dad388a93d8ff2f7",
    ),
    "fire": RemoteFile(
        "earth_fire/fire.csv",
        ADDRESS + "fire.csv",
        "c5c6c9490b1d8c58ba9eb78d9e2f82d1c1e62694ca5cff917c54600d3d83f459",
    ),
}

NAMES = {
    "latitude": ("latitude", "lat"),
    "longitude": ("longitude", "lon", "long", "lng"),
}
BOUNDS = {"latitude": (-90.0, 90.0), "longitude": (-180.0, 360.0)}


def load(name: str) -> Tensor:
    """Load a set by name.

    Args:
        name: `volcano` (827 rows), `earthquake` (6120) or `fire` (12809).

    Returns:
        Latitude and longitude in degrees, `(rows, 2)`, float64.

    Raises:
        DomainError: There is no such set.
        DataError: The file is damaged, or its address cannot be reached.
        MissingExtraError: The file has to be fetched and pooch is not installed.

    Example:
        >>> list(FILES)
        ['volcano', 'earthquake', 'fire']
        >>> x = to_sphere(load("volcano"))  # doctest: +SKIP
    """
    if name not in FILES:
        raise DomainError(f"earth.load: there is no set {name!r}; known are {list(FILES)}")
    return read(fetch(FILES[name]))


def read(path: str | os.PathLike[str]) -> Tensor:
    r"""Read latitudes and longitudes from a table of your own.

    The file is text in UTF-8, plain or gzipped (`.gz`), with commas between its columns and decimal
    points in its numbers. Lines that are blank or start with `#` are passed over. The first other
    line may name the columns. Then one column has to be called `latitude` or `lat`, and one
    `longitude`, `lon`, `long` or `lng`, in any order, upper or lower case; all others are
    disregarded. Without such a line the first column is the latitude, the second the longitude.

    Args:
        path: The file.

    Returns:
        Latitude in [-90, 90] and longitude in [-180, 360] in degrees, as the file has them,
        `(rows, 2)`, float64.

    Raises:
        DataError: The file cannot be read, is empty, has rows of different lengths or one column,
            does not name its columns, or holds a value that is blank, no number, or out of range.

    Example:
        >>> import os, tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "whales.csv")
        >>> _ = open(path, "w").write("id,lon,lat\n7,-70.2,41.5\n9,-69.8,42.1\n")
        >>> read(path)
        tensor([[ 41.5000, -70.2000],
                [ 42.1000, -69.8000]], dtype=torch.float64)
    """
    where = "earth.read"
    table = rows(where, path)
    if len(table[0].values) < 2:
        raise DataError(
            f"{where}: {path} has one column: expected latitude and longitude with a comma between "
            f"them, got {table[0].values[0][:80]!r} in line {table[0].line}"
        )
    columns = {"latitude": 0, "longitude": 1}
    if not any(is_number(value) for value in table[0].values):
        columns = _columns(where, path, table.pop(0))
    if not table:
        raise DataError(f"{where}: {path} is empty: it names its columns, and no row follows")
    places = [[_degrees(where, path, row, columns, name) for name in columns] for row in table]
    return torch.tensor(places, dtype=torch.float64)


def to_sphere(degrees: Tensor) -> Tensor:
    """Turn latitudes and longitudes into points of the unit sphere.

        x = (cos lat cos lon, cos lat sin lon, sin lat)

    Args:
        degrees: Latitude and longitude in degrees, `(*batch, 2)`.

    Returns:
        Unit vectors, `(*batch, 3)`: the first axis leaves the equator at longitude 0, the second at
        90 degrees east, the third at the north pole.

    Raises:
        ShapeError: degrees does not end in two.
        DomainError: degrees is not floating, or a latitude lies outside [-90, 90].

    Example:
        >>> to_sphere(torch.tensor([[0.0, 0.0], [30.0, 60.0]]))
        tensor([[1.0000, 0.0000, 0.0000],
                [0.4330, 0.7500, 0.5000]])
    """
    if not degrees.dim() or degrees.shape[-1] != 2:
        raise ShapeError(
            "earth.to_sphere: expected latitude and longitude `(*batch, 2)`, got "
            f"{tuple(degrees.shape)}"
        )
    expect_floating("earth.to_sphere", degrees)
    outside = ~(degrees[..., 0].abs() <= 90)  # NaN is outside as well
    if known(outside.any()):
        first = degrees[outside][0].tolist()
        raise DomainError(
            f"earth.to_sphere: latitudes must lie in [-90, 90] degrees, got {first[0]:g} at "
            f"longitude {first[1]:g}{_swapped(*first)}"
        )
    latitude, longitude = torch.deg2rad(degrees).unbind(-1)
    across = latitude.cos()
    return torch.stack([across * longitude.cos(), across * longitude.sin(), latitude.sin()], dim=-1)


def to_degrees(x: Tensor) -> Tensor:
    """Turn points of the unit sphere into latitudes and longitudes.

        lat = atan2(x3, sqrt(x1^2 + x2^2)),    lon = atan2(x2, x1)

    Args:
        x: Vectors of any length above zero, `(*batch, 3)`.

    Returns:
        Latitude in [-90, 90] and longitude in [-180, 180] in degrees, `(*batch, 2)`; at a pole the
        longitude says nothing.

    Raises:
        ShapeError: x does not end in three.
        DomainError: x is not floating.

    Example:
        >>> to_degrees(torch.tensor([0.0, -2.0, 2.0]))
        tensor([ 45., -90.])
    """
    if not x.dim() or x.shape[-1] != 3:
        raise ShapeError(f"earth.to_degrees: expected vectors `(*batch, 3)`, got {tuple(x.shape)}")
    expect_floating("earth.to_degrees", x)
    latitude = torch.atan2(x[..., 2], torch.hypot(x[..., 0], x[..., 1]))
    longitude = torch.atan2(x[..., 1], x[..., 0])
    return torch.rad2deg(torch.stack([latitude, longitude], dim=-1))


def counted(degrees: Tensor, *, size: float = 10.0, seed: int = 0) -> Split:
    """Make the split on which a figure counts: no place twice, whole blocks held out.

    Places that occur more than once count once; each is spread evenly over the square of degrees
    that it was rounded to (`resolution`, 0.001 degree in the three sets); then whole blocks of
    latitude and longitude train, validate (about a tenth of the places) or test (a tenth).

    Some files round more coarsely than their last decimal says: of the earthquakes three in five
    are given to a tenth of a degree or a whole one, so that they lie on a lattice that a model fine
    enough could learn. A test place can still lie just across the border of a training block, and a
    part of the earth that no training block covers can only be guessed: expect far worse figures
    than on random rows.

    Args:
        degrees: Latitude and longitude in degrees, `(rows, 2)`, float64, as `load` or `read`
            returns them.
        size: Width of a block in degrees; it must divide 180.
        seed: Decides the blocks and the spreading.

    Returns:
        Unit vectors, float64.

    Raises:
        ShapeError: degrees is no table of two columns.
        DomainError: A latitude lies outside [-90, 90], degrees is not float64, or the places lie in
            too few blocks for three parts.

    Example:
        >>> places = torch.rand(1000, 2, dtype=torch.float64).mul(90).round(decimals=2)
        >>> train, validation, test = counted(places)
        >>> train.shape[1], bool(len(train) > 5 * len(test) > 0)
        (3, True)
    """
    if degrees.dim() != 2 or degrees.shape[1] != 2:
        raise ShapeError(
            f"earth.counted: expected latitude and longitude `(rows, 2)`, got "
            f"{tuple(degrees.shape)}"
        )
    to_sphere(degrees)  # refuses latitudes that are none
    step = resolution(degrees)
    latitude, longitude = degrees.unbind(1)
    # One name for each place: a longitude in [-180, 180), rounded again because the remainder loses
    # the last digits; zero at the poles.
    longitude = (torch.remainder(longitude + 180, 360) - 180).div(step).round() * step
    longitude = torch.where(latitude.abs() == 90, 0.0, longitude)
    places = torch.stack([latitude, longitude], dim=1)
    places = places[distinct(places)]
    generator = Generator().manual_seed(seed)
    latitude, longitude = jitter(places, step, generator=generator).unbind(1)
    over = latitude.abs() > 90  # what leaves a pole comes down on its other side
    latitude = torch.where(over, latitude.sign() * 180 - latitude, latitude)
    longitude = torch.where(over, longitude + 180, longitude)
    x = to_sphere(torch.stack([latitude, longitude], dim=1))
    return grouped_split(x, blocks(places, size=size), seed=seed)


def _columns(where: str, path: str | os.PathLike[str], header: Row) -> dict[str, int]:
    """Find the latitude and the longitude in the line that names the columns."""
    titles = [title.lower() for title in header.values]
    found = {}
    for name, spellings in NAMES.items():
        places = [k for k, title in enumerate(titles) if title in spellings]
        if len(places) != 1:
            raise DataError(
                f"{where}: {path}, line {header.line}: expected numbers, or names of columns with "
                f"one {name} among them ({', '.join(spellings)}), got {header.values}"
            )
        found[name] = places[0]
    return found


def _degrees(
    where: str, path: str | os.PathLike[str], row: Row, columns: dict[str, int], name: str
) -> float:
    column = columns[name]
    value = number(where, path, row, column, name=f"a {name} in degrees")
    low, high = BOUNDS[name]
    if low <= value <= high:
        return value
    both = [row.values[columns[n]] for n in NAMES]
    hint = _swapped(*map(float, both)) if all(map(is_number, both)) else ""
    raise DataError(
        f"{where}: {path}, line {row.line}, column {column + 1}: expected a {name} in "
        f"[{low:g}, {high:g}] degrees, got {row.values[column]}{hint}"
    )


def _swapped(latitude: float, longitude: float) -> str:
    """Ask the likely question where the two would be in range the other way round."""
    could = abs(longitude) <= 90 < abs(latitude) <= 360
    return "; are the columns swapped? The latitude comes first" if could else ""
