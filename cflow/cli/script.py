"""Run an experiment script with its own arguments, as the interpreter would."""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from cflow.errors import DataError

__all__ = ["run_script", "script_of"]


def script_of(words: Sequence[str]) -> Path | None:
    """Return the script that a command line asks for, `train something.py ...`, or None.

    Raises:
        DataError: There is no such script.

    Example:
        >>> script_of(["train", "nsf", "data.npy"]) is None
        True
    """
    if len(words) < 2 or words[0] != "train" or not words[1].endswith(".py"):
        return None
    path = Path(words[1])
    if not path.is_file():
        raise DataError(f"cannot run {path}: there is no such script")
    return path


def run_script(path: Path, arguments: Sequence[str]) -> None:
    """Run a script under the name `__main__`, its folder first on the path; its errors are its own.

    Raises:
        SystemExit: The script ends with a status of its own.
    """
    before, searched = sys.argv, list(sys.path)
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before, searched
