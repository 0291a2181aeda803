"""Read a table of text line by line, so that an error can name the line that is wrong.

Lines that are blank or start with `#` are passed over. Values are numbers as people write them in
tables, `-12.5` or `1e-3`, with a decimal point.
"""

import csv
import gzip
import math
import os
import zlib
from pathlib import Path
from typing import NamedTuple

from cflow.errors import DataError

__all__ = ["Row", "is_number", "number", "rows", "text"]

SEPARATORS = ("\t", ",", ";")


class Row(NamedTuple):
    """Hold the number of a line, counted from 1, and its values, stripped."""

    line: int
    values: list[str]


def text(where: str, path: str | os.PathLike[str]) -> str:
    """Read a text file in UTF-8, plain or, where its name ends in `.gz`, gzipped.

    Args:
        where: What the errors name first.
        path: The file.

    Raises:
        DataError: The file cannot be read, or is not text.

    Example:
        >>> import os, tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "a.csv")
        >>> _ = open(path, "w").write("1,2")
        >>> text("example", path)
        '1,2'
    """
    try:
        content = Path(path).read_bytes()
        content = gzip.decompress(content) if str(path).endswith(".gz") else content
        decoded = content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{where}: cannot read {path} as text in UTF-8 ({error})") from error
    if "\0" in decoded:
        raise DataError(f"{where}: {path} is damaged or no text: it holds the character NUL")
    return decoded


def rows(where: str, path: str | os.PathLike[str], *, separator: str | None = ",") -> list[Row]:
    r"""Read the rows of a table, all of one length.

    Args:
        where: What the errors name first.
        path: The file, plain or gzipped.
        separator: What stands between two values; None finds it in the first row: a tab, else a
            comma, else a semicolon, else any white space.

    Raises:
        DataError: The file cannot be read, holds no rows, or rows of different lengths.

    Example:
        >>> import os, tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "a.csv")
        >>> _ = open(path, "w").write("# measured\n1, 2\n\n3, 4\n")
        >>> rows("example", path)
        [Row(line=2, values=['1', '2']), Row(line=4, values=['3', '4'])]
    """
    lines = enumerate(text(where, path).splitlines(), start=1)
    kept = [(k, line) for k, line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not kept:
        raise DataError(f"{where}: {path} is empty: all its lines are blank or comments")
    if separator is None:
        separator = next((s for s in SEPARATORS if s in kept[0][1]), None)
    found = [Row(k, _split(where, path, k, line, separator)) for k, line in kept]
    width = len(found[0].values)
    for row in found:
        if len(row.values) != width:
            raise DataError(
                f"{where}: {path}, line {row.line}: expected {width} columns as in line "
                f"{found[0].line}, got {len(row.values)}: {row.values}"
            )
    return found


def is_number(value: str) -> bool:
    """Tell whether a value is written as a number; `nan` and `inf` are.

    Example:
        >>> [is_number(value) for value in ("-1.5", "1e3", "nan", "", "1_000", "12A")]
        [True, True, True, False, False, False]
    """
    try:
        float(value)
    except ValueError:
        return False
    return "_" not in value


def number(where: str, path: str | os.PathLike[str], row: Row, column: int, *, name: str) -> float:
    """Return a finite number from a row.

    Args:
        where: What the errors name first.
        path: The file, for the errors.
        row: The row.
        column: Position in the row.
        name: What the number is, for the errors.

    Raises:
        DataError: The value is blank, no number, or not finite.

    Example:
        >>> number("example", "a.csv", Row(3, ["2", "-1.5"]), 1, name="an angle")
        -1.5
    """
    value = row.values[column]
    if is_number(value) and math.isfinite(float(value)):
        return float(value)
    got = repr(value) if value else "a blank"
    raise DataError(
        f"{where}: {path}, line {row.line}, column {column + 1}: expected {name}, a finite number, "
        f"got {got}; repair that row or leave it out"
    )


def _split(
    where: str, path: str | os.PathLike[str], line: int, content: str, separator: str | None
) -> list[str]:
    if separator is None:
        return content.split()
    if content.count('"') % 2:
        raise DataError(f"{where}: {path}, line {line}: a quote does not end: {content[:80]!r}")
    fields = next(csv.reader([content], delimiter=separator, skipinitialspace=True))
    return [field.strip() for field in fields]
