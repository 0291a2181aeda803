"""Files of data: found, checked, and refused with a word on how to mend it. No network here."""

import hashlib
import sys
from pathlib import Path

import pytest

from cflow.data import RemoteFile, fetch, find
from cflow.errors import DataError, MissingExtraError

CONTENT = b"1;2\n3;4\n"
FILE = RemoteFile(
    "kind/file.csv", "http://127.0.0.1:9/file.csv", hashlib.sha256(CONTENT).hexdigest()
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the file is looked for, with an empty cache behind it."""
    monkeypatch.setenv("CFLOW_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = tmp_path / "data" / FILE.path
    path.parent.mkdir(parents=True)
    return path


def test_the_folder_of_the_environment_comes_first(place: Path) -> None:
    assert find(FILE) is None
    place.write_bytes(CONTENT)
    assert find(FILE) == place
    assert fetch(FILE) == place


def test_a_damaged_file_is_named_with_both_checksums(place: Path) -> None:
    place.write_bytes(CONTENT[:-1])
    with pytest.raises(DataError) as caught:
        fetch(FILE)
    message = str(caught.value)
    got = hashlib.sha256(CONTENT[:-1]).hexdigest()
    assert all(word in message for word in (str(place), FILE.sha256, got, "delete it", FILE.url))


def test_what_was_fetched_is_found_in_the_cache(place: Path, monkeypatch) -> None:
    pooch = pytest.importorskip("pooch")
    cached = Path(pooch.os_cache("cflow")) / FILE.path
    cached.parent.mkdir(parents=True)
    cached.write_bytes(CONTENT)
    assert fetch(FILE) == cached
    monkeypatch.delenv("CFLOW_DATA")
    assert fetch(FILE) == cached


def test_an_address_that_cannot_be_reached_is_named(place: Path) -> None:
    pytest.importorskip("pooch")
    with pytest.raises(DataError, match=r"cannot fetch kind/file.csv from http://127.0.0.1:9"):
        fetch(FILE)


def test_a_file_of_another_content_is_not_kept(place: Path, tmp_path: Path, monkeypatch) -> None:
    pooch = pytest.importorskip("pooch")

    def retrieve(url: str, known_hash: str, *, fname: str, path: Path) -> None:
        raise ValueError("SHA256 hash of downloaded file does not match")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(DataError, match=r"does not match.*put a copy with SHA-256"):
        fetch(FILE)


def test_without_pooch_the_extra_is_named(place: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"cflow\[experiments\]"):
        fetch(FILE)
    place.write_bytes(CONTENT)
    assert fetch(FILE) == place
