"""MNIST: a public subset of 10,000 training images and the 10,000 official test images.

The 60,000 training images are not read here. The subset lies in the repository cazala/mnist as ten
JSON files of floating pixels; the archive that is read holds them rounded to 0..255, sorted by
class, and shares no image with the test set. So published figures, for six times as many training
images, are a guide only.

Source: LeCun, Cortes and Burges (1998), The MNIST database of handwritten digits, CC BY-SA 3.0.
"""

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cflow.data.fetch import RemoteFile, fetch, find
from cflow.errors import DataError

__all__ = ["MNIST", "Labelled", "mnist"]

REPOSITORY = (
    "https://raw.githubusercontent.com/daniel-e/machine_learning/"
    "7d1684e309da0866a88c73001d0e3b16179025c4/data/mnist/"
)
SUBSET = RemoteFile(
    "mnist/mnist_10k_train_subset.npz",
    "https://github.com/cazala/mnist/tree/76157793a26e2eed9313a6cde6ee60d8167a04fd/src/digits",
    "0217e13bd0668deb198aa7d305edbf0331eb89f8a6e7dd226e03d1aa3a9bd4ef",
)
TEST_IMAGES = RemoteFile(
    "mnist/t10k-images-idx3-ubyte.gz",
    REPOSITORY + "t10k-images-idx3-ubyte.gz",
    "9fe7630f90c0e670227960a294637bc2e78a29d724810e24204eb342c9f033a1",
)
TEST_LABELS = RemoteFile(
    "mnist/t10k-labels-idx1-ubyte.gz",
    REPOSITORY + "t10k-labels-idx1-ubyte.gz",
    "2c54c993d38068b3c3adb720a5cdee07065a066a7b36e7d1df720548d6359eba",
)
HEADERS = {2049: 8, 2051: 16}  # magic number of an idx file: bytes before its values


class Labelled(NamedTuple):
    """Hold images, `(n, 1, 28, 28)` of integers 0..255, and their classes 0..9, `(n,)`."""

    images: Tensor
    labels: Tensor


class MNIST(NamedTuple):
    """Hold the subset to train on, sorted by class, and the official test set."""

    train: Labelled
    test: Labelled


def mnist() -> MNIST:
    """Load the 10,000 training images and the 10,000 test images.

    Returns:
        Integer images and labels, int64; shuffle the training part before it is split.

    Raises:
        DataError: A file is damaged or cannot be fetched. The training subset is a conversion,
            which no address offers as a file: it has to lie in the folder named by `CFLOW_DATA`.
        MissingExtraError: A test file has to be fetched and pooch is not installed.

    Example:
        >>> train, test = mnist()  # doctest: +SKIP
        >>> train.images.shape  # doctest: +SKIP
        torch.Size([10000, 1, 28, 28])
    """
    if find(SUBSET) is None:
        raise DataError(
            f"mnist: {SUBSET.path} is not on disk, and no address offers it whole; round the "
            f"pixels of the ten files in {SUBSET.url} to 0..255, save them by class as arrays "
            "images and labels, and name the folder that holds the result in CFLOW_DATA"
        )
    with np.load(fetch(SUBSET), allow_pickle=False) as arrays:
        train = _labelled(arrays["images"], arrays["labels"])
    return MNIST(train, _labelled(_read_idx(fetch(TEST_IMAGES)), _read_idx(fetch(TEST_LABELS))))


def _labelled(images: np.ndarray, labels: np.ndarray) -> Labelled:
    pixels = torch.from_numpy(images.astype(np.int64)).reshape(-1, 1, 28, 28)
    return Labelled(pixels, torch.from_numpy(labels.astype(np.int64)))


def _read_idx(path: Path) -> np.ndarray:
    """Read the bytes of an idx file: a magic number, the lengths of its axes, then the values."""
    with gzip.open(path) as opened:
        content = opened.read()
    magic = int.from_bytes(content[:4], "big")
    if magic not in HEADERS:
        raise DataError(f"mnist: {path} is no idx file of bytes: it starts with {magic}")
    return np.frombuffer(content, dtype=np.uint8, offset=HEADERS[magic])
