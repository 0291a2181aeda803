"""Handwritten digits: 1797 images of 8 x 8 with 17 grey levels, bundled with scikit-learn.

Source: Alpaydin and Kaynak (1998), Optical recognition of handwritten digits, UCI repository.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cflow.errors import MissingExtraError

__all__ = ["Split", "digits"]

TRAIN, VALIDATION, TEST = 1197, 200, 400


class Split(NamedTuple):
    """Hold three disjoint parts of a data set."""

    train: Tensor
    validation: Tensor
    test: Tensor


def digits(*, seed: int = 0) -> Split:
    """Load the digits, split at random but fixed by the seed.

    Args:
        seed: Decides the split.

    Returns:
        Integer images with values 0..16, `(1197, 8, 8)`, `(200, 8, 8)` and `(400, 8, 8)`.

    Raises:
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> digits().test.shape
        torch.Size([400, 8, 8])
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            "digits: scikit-learn is not installed; pip install 'cflow[experiments]'"
        ) from error
    pixels, _ = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).long().reshape(-1, 8, 8)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return Split(*images[order].split([TRAIN, VALIDATION, TEST]))
