"""Clouds of particles drawn from known energies: four in a double well, thirteen of Lennard-Jones.

    DW4   E(x) = sum over pairs of -4 (d - 4)^2 + 0.9 (d - 4)^4
    LJ13  E(x) = sum over pairs of 2 (d^-12 - 2 d^-6), plus |x - mean|^2 / 2

d is the distance of a pair, energies are in units of k T, and clouds follow exp(-E) on the subspace
of centred clouds. They were drawn by Markov chains, and so are a good reference, not an exact one.
Source: Koehler, Klein and Noe (2020), Equivariant flows, arXiv 2006.02425; copies from Akhound-
Sadegh et al. (2024), Iterated denoising energy matching, arXiv 2402.06121, jarridrb/DEM, MIT.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cflow.data.fetch import RemoteFile, fetch
from cflow.errors import DataError, DomainError, expect_trailing

__all__ = ["FILES", "SYSTEMS", "Part", "System", "energy", "load"]

Part: TypeAlias = Literal["train", "validation", "test"]

ADDRESS = (
    "https://raw.githubusercontent.com/jarridrb/DEM/8e9531987b0bfe4e770d5009c10a56b8434c0f0a/data/"
)


class System(NamedTuple):
    """Say the shape of a cloud, and its energy in units of k T, of distances and of the cloud."""

    shape: tuple[int, int]
    pair: Callable[[Tensor], Tensor]
    stiffness: float


SYSTEMS = {
    "dw4": System((4, 2), lambda d: -4 * (d - 4) ** 2 + 0.9 * (d - 4) ** 4, 0.0),
    "lj13": System((13, 3), lambda d: 2 * (d**-12 - 2 * d**-6), 1.0),
}


def _file(name: str, sha256: str) -> RemoteFile:
    return RemoteFile(f"boltzmann/{name}", ADDRESS + name, sha256)


FILES = {
    ("dw4", "train"): _file(
        "train_split_DW4.npy", "03e4cd085b52bf021cebc7f5f6d05aec0cdccff890a476b36595c2e343b1c58a"
    ),
    ("dw4", "validation"): _file(
        "val_split_DW4.npy", "05683af2442aea8c358d35482a1c6877fc53796e46c9f5335fa92aa4f3670de6"
    ),
    ("dw4", "test"): _file(
        "test_split_DW4.npy", "ef4466793b3502b2fe405aad22d3ae43b34827971594c5bab28684771d828244"
    ),
    ("lj13", "validation"): _file(
        "val_split_LJ13-1000.npy",
        "77a051cd50b16bec41e8fa056f6f77e21804d530a7461369f3a3ee985a576eb7",
    ),
    ("lj13", "test"): _file(
        "test_split_LJ13-1000.npy",
        "c5064a56282e96441f1ff2f1babb13c241a99cd1077aee3667951d06055a785b",
    ),
}


def load(system: str, part: Part = "train") -> Tensor:
    """Load clouds of a system, each less the mean of its particles.

    Args:
        system: "dw4" (4 particles in the plane) or "lj13" (13 in space).
        part: Which part; "lj13" has no "train".

    Returns:
        Points `(n, particles, dims)`, float32: 100,000 for training, 10,000 in the other parts.

    Raises:
        DomainError: There is no such system or part.
        DataError: The file is damaged, or cannot be fetched.
        MissingExtraError: The file has to be fetched and pooch is not installed.

    Example:
        >>> load("dw4", "test").shape  # doctest: +SKIP
        torch.Size([10000, 4, 2])
    """
    if (system, part) not in FILES:
        raise DomainError(
            f"particles.load: there is no part {part!r} of {system!r}; known are {list(FILES)}"
        )
    path = fetch(FILES[system, part])
    rows = np.load(path, allow_pickle=False)
    particles, dims = SYSTEMS[system].shape
    if rows.ndim != 2 or rows.shape[1] != particles * dims or not np.isfinite(rows).all():
        raise DataError(
            f"particles.load: {path} must hold finite rows of {particles * dims} numbers, got "
            f"shape {rows.shape}"
        )
    # Centres lie up to 16 units away: they are taken off before digits are cut.
    x = torch.from_numpy(rows.astype(np.float64)).reshape(-1, particles, dims)
    return (x - x.mean(1, keepdim=True)).float()


def energy(system: str, x: Tensor) -> Tensor:
    """Return energies in units of k T; differentiable where no particles coincide.

    Args:
        system: "dw4" or "lj13".
        x: Clouds `(*batch, particles, dims)`; their centre does not matter.

    Returns:
        Energies `(*batch,)`, whose density exp(-E) is not normalised.

    Raises:
        DomainError: There is no such system.
        ShapeError: Clouds of another shape.

    Example:
        >>> square = torch.tensor([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0], [0.0, 4.0]])
        >>> energy("dw4", square)  # the diagonals alone: 2 (-4 a^2 + 0.9 a^4), a = 4 sqrt(2) - 4
        tensor(-8.3966)
    """
    if system not in SYSTEMS:
        raise DomainError(
            f"particles.energy: there is no system {system!r}; known are {list(SYSTEMS)}"
        )
    shape, pair, stiffness = SYSTEMS[system]
    expect_trailing("particles.energy", "x", x, shape)
    i, j = torch.triu_indices(shape[0], shape[0], 1, device=x.device)
    distances = torch.linalg.vector_norm(x[..., i, :] - x[..., j, :], dim=-1)
    centred = x - x.mean(-2, keepdim=True)
    return pair(distances).sum(-1) + 0.5 * stiffness * centred.square().sum((-2, -1))
