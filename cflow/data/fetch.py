"""Find a published file on disk, or fetch it once from its original address and keep it.

The folder named by the environment variable `CFLOW_DATA` is asked first, then the user's cache,
then the network; whatever is found has to have the SHA-256 checksum that was written down for it.
"""

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from cflow.errors import DataError, MissingExtraError

__all__ = ["RemoteFile", "fetch", "find"]

VARIABLE = "CFLOW_DATA"


@dataclass(frozen=True)
class RemoteFile:
    """Say where a file lies, here and out there.

    Attributes:
        path: Its place below the data folder, such as `uci_density/winequality-red.csv`.
        url: Its original address.
        sha256: Its checksum, in hexadecimal.
    """

    path: str
    url: str
    sha256: str


def find(file: RemoteFile) -> Path | None:
    """Return where the file lies on disk, unchecked, or None where it would have to be fetched."""
    folders = [os.environ.get(VARIABLE), _cache()]
    places = [Path(folder) / file.path for folder in folders if folder]
    return next((place for place in places if place.is_file()), None)


def fetch(file: RemoteFile) -> Path:
    """Return where the file lies on disk, after fetching it where it has to be.

    Args:
        file: What is wanted. Fetched files go to pooch's usual cache, in the folder `cflow`.

    Raises:
        DataError: The file is damaged, or its address cannot be reached.
        MissingExtraError: The file has to be fetched and pooch is not installed.

    Example:
        >>> import os, tempfile
        >>> empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        >>> before, folder = os.environ.get("CFLOW_DATA"), tempfile.mkdtemp()
        >>> os.environ["CFLOW_DATA"] = folder
        >>> _ = open(f"{folder}/nothing.csv", "w").close()
        >>> fetch(RemoteFile("nothing.csv", "https://example.org/nothing.csv", empty)).name
        'nothing.csv'
        >>> _ = os.environ.pop("CFLOW_DATA") if before is None else None
        >>> os.environ.update({} if before is None else {"CFLOW_DATA": before})
    """
    place = find(file)
    if place is None:
        place = _download(file)
    with place.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != file.sha256:
        raise DataError(
            f"fetch: {place} is damaged: expected SHA-256 {file.sha256}, got {digest} "
            f"({place.stat().st_size} bytes); delete it to have it fetched again from {file.url}, "
            f"or put a whole copy in its place"
        )
    return place


def _cache() -> Path | None:
    if importlib.util.find_spec("pooch") is None:
        return None
    import pooch  # an extra

    return Path(pooch.os_cache("cflow"))


def _download(file: RemoteFile) -> Path:
    cache = _cache()
    if cache is None:
        raise MissingExtraError(
            f"fetch: {file.path} is not on disk, and pooch, which fetches it, is not installed; "
            f"pip install 'cflow[experiments]', or name a folder that holds it in {VARIABLE}"
        )
    import pooch

    place = cache / file.path
    try:
        pooch.retrieve(file.url, f"sha256:{file.sha256}", fname=place.name, path=place.parent)
    except (
        OSError,
        ValueError,
    ) as error:  # requests' errors are OSErrors, a wrong hash a ValueError
        raise DataError(
            f"fetch: cannot fetch {file.path} from {file.url} ({error}); put a copy with SHA-256 "
            f"{file.sha256} at {place}, or name a folder that holds {file.path} in {VARIABLE}"
        ) from error
    return place
