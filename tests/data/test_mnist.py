"""MNIST: its shapes, its values, and that the two parts share no image."""

import gzip
import sys
from pathlib import Path

import pytest
import torch

from cflow.data import find, mnist
from cflow.data.mnist import SUBSET, TEST_IMAGES, _read_idx
from cflow.errors import DataError


def test_both_parts_are_whole_and_disjoint() -> None:
    if find(SUBSET) is None or find(TEST_IMAGES) is None:
        pytest.skip("MNIST is not on disk; name a folder that holds it in CFLOW_DATA")
    train, test = mnist()
    for part in (train, test):
        assert part.images.shape == (10_000, 1, 28, 28)
        assert part.images.dtype == part.labels.dtype == torch.int64
        assert (part.images.min(), part.images.max()) == (0, 255)
        assert len(part.labels.unique()) == 10
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]  # as everyone knows them
    rows = {image.numpy().tobytes() for image in train.images.to(torch.uint8)}
    assert not any(image.numpy().tobytes() in rows for image in test.images.to(torch.uint8))


def test_a_missing_subset_is_explained(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CFLOW_DATA", str(tmp_path))
    monkeypatch.setattr(sys.modules["cflow.data.fetch"], "_cache", lambda: None)
    with pytest.raises(DataError, match=r"no address offers it whole.*CFLOW_DATA"):
        mnist()


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(b"\x00\x00\x00\x07nothing"))
    with pytest.raises(DataError, match="starts with 7"):
        _read_idx(path)
