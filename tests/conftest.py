"""Tests run in float64 and from one seed; nothing but what a test draws itself can move it.

Tests of the command line have it in their own process: words in, status and lines out, as a shell
would see them. Where a test needs a process of its own and has nothing to say about imports, it is
forked from one that has imported what all need, which takes seconds each time.
"""

import multiprocessing
import multiprocessing.context
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # the suite runs in parallel processes, on tensors of a few entries
multiprocessing.set_forkserver_preload(
    ["cflow.matching", "cflow.recipes", "cflow.train", "ot", "scipy.stats", "torch._dynamo"]
)


@pytest.fixture(scope="session")
def forked() -> multiprocessing.context.ForkServerContext:
    """Start processes by this that know of torch and cflow what an import leaves, and no more."""
    return multiprocessing.get_context("forkserver")


@pytest.fixture(autouse=True)
def float64_and_seed() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)  # benchmarks take more


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    def expect_refusal(self, *words: str) -> None:
        """Status 2, one line on stderr that holds the words, nothing else, no traceback."""
        assert self.status == 2, (self.out, self.err)
        assert self.out == ""
        assert self.err.startswith("cflow: ")
        assert self.err.count("\n") == 1
        assert self.err.endswith("\n")
        assert "Traceback" not in self.err
        for word in words:
            assert word in self.err, self.err

    def expect_success(self, *words: str) -> None:
        assert self.status == 0, self.err
        for word in words:
            assert word in self.out, self.out


@pytest.fixture
def in_an_empty_folder(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    torch.set_default_dtype(torch.float32)  # as a process of its own has it
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cflow(capsys) -> Callable[..., Ended]:
    """Call as `cflow("sample", "runs/nsf", "-n", 10)`."""

    def call(*words: object) -> Ended:
        from cflow.cli import main

        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as end:
            status = 0 if end.code is None else end.code
        out, err = capsys.readouterr()
        return Ended(status, out, err)

    return call


@pytest.fixture
def ring() -> Path:
    """A table of 600 points around a ring, far from the origin, in units of its own."""
    generator = np.random.default_rng(0)
    angle = 2 * np.pi * generator.random(600)
    points = np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * generator.standard_normal((600, 2))
    np.save("ring.npy", 200 + 50 * points)
    return Path("ring.npy")


@pytest.fixture
def pixels() -> Path:
    """200 images of 2 x 2 grey levels 0 .. 16."""
    np.save("pixels.npy", np.random.default_rng(0).integers(0, 17, (200, 2, 2)).astype(np.uint8))
    return Path("pixels.npy")
