"""Tests run in float64 and from one seed; nothing but what a test draws itself can move it."""

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)  # the suite runs in parallel processes, on tensors of a few entries


@pytest.fixture(autouse=True)
def float64_and_seed() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
