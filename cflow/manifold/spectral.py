"""The spectrum of a surface of triangles, distances made of it, and smooth normals.

    L phi = lambda M phi,    d(x, y)^2 = sum_i w(lambda_i) (phi_i(x) - phi_i(y))^2,  lambda_i > 0

L is the cotangent Laplacian and M the mass matrix of functions that are linear on each face, so
that the eigenfunctions are orthonormal over the surface, and the eigenvalues no smaller than those
of its smooth limit. The distance is that of an embedding: symmetric, with the triangle inequality.
Source: Pinkall and Polthier (1993), Computing discrete minimal surfaces and their conjugates;
Lipman, Rustamov and Funkhouser (2010), Biharmonic distance; Coifman and Lafon (2006), Diffusion
maps; Chen and Lipman (2024), Flow matching on general geometries, arXiv 2302.03660, section 3.2.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cflow.errors import expect_positive
from cflow.manifold.triangles import Faces

if TYPE_CHECKING:
    from scipy.sparse import csc_array

__all__ = ["Biharmonic", "Diffusion", "Premetric", "Spectrum", "smooth_normals", "spectrum"]

DENSE = 700  # vertices up to which all eigenpairs are computed at once


class Spectrum(NamedTuple):
    """Hold eigenpairs of the Laplacian, eigenvalues rising from that of the constant function.

    Attributes:
        eigenvalues: In units of 1 / length^2, `(K,)`; the first is zero.
        eigenfunctions: Values at the vertices, `(V, K)`, orthonormal over the surface.
    """

    eigenvalues: Tensor
    eigenfunctions: Tensor


class Premetric(ABC):
    """How much each eigenfunction counts in a distance; concrete ones are frozen."""

    @abstractmethod
    def weight(self, eigenvalues: Tensor) -> Tensor:
        """Return w(lambda) for eigenvalues above zero."""


@dataclass(frozen=True)
class Biharmonic(Premetric):
    """Count an eigenfunction by 1 / lambda^2: smooth from far, near to geodesic from close by.

    References:
        Lipman, Rustamov and Funkhouser (2010), Biharmonic distance.

    Example:
        >>> Biharmonic().weight(torch.tensor([2.0]))
        tensor([0.2500])
    """

    def weight(self, eigenvalues: Tensor) -> Tensor:
        return eigenvalues.square().reciprocal()


@dataclass(frozen=True)
class Diffusion(Premetric):
    """Count an eigenfunction by exp(-2 lambda t): what is left of it after heat flowed for t.

    Attributes:
        time: The time t, in units of length^2.

    Raises:
        DomainError: The time is not positive.

    References:
        Coifman and Lafon (2006), Diffusion maps.

    Example:
        >>> Diffusion(0.5).weight(torch.tensor([2.0]))
        tensor([0.1353])
    """

    time: float

    def __post_init__(self) -> None:
        expect_positive("Diffusion", time=self.time)

    def weight(self, eigenvalues: Tensor) -> Tensor:
        return (-2 * self.time * eigenvalues).exp()


def spectrum(faces: Faces, eigenpairs: int) -> Spectrum:
    """Compute the first eigenpairs of the Laplacian of a surface.

    Args:
        faces: The surface.
        eigenpairs: How many, besides the constant function; at most as many as there are vertices
            less one.

    Returns:
        Float64 tensors on the CPU.

    Raises:
        DomainError: eigenpairs is not positive.
    """
    from scipy.linalg import eigh
    from scipy.sparse.linalg import eigsh

    expect_positive("Mesh", eigenpairs=eigenpairs)
    laplacian, mass = _matrices(faces)
    size = int(faces.corners.max()) + 1
    count = min(eigenpairs + 1, size)
    if size <= DENSE or count > size // 2:
        pairs = eigh(laplacian.toarray(), mass.toarray(), subset_by_index=(0, count - 1))
    else:  # the inverse of L + M / area, which is positive; a fixed start makes it reproducible
        start = np.random.default_rng(0).standard_normal(size)
        pairs = eigsh(laplacian, count, mass, sigma=-1 / mass.sum(), v0=start)
    values, functions = (torch.from_numpy(np.ascontiguousarray(part)) for part in pairs)
    values[0] = 0.0
    order = values.argsort()
    return Spectrum(values[order], functions[:, order])


def smooth_normals(faces: Faces, length: float) -> Tensor:
    """Return unit normals at the vertices, `(V, 3)`: those of the faces after some flow of heat.

        (M + length^2 L) m = integrals of the faces' normals

    one implicit step of the heat equation for each component.

    Args:
        faces: The surface.
        length: How far they are spread.
    """
    from scipy.sparse.linalg import splu

    laplacian, mass = _matrices(faces)
    shares = (faces.area[:, None] / 3 * faces.normal).repeat_interleave(3, 0).double().cpu()
    load = torch.zeros(int(faces.corners.max()) + 1, 3, dtype=torch.float64)
    load = load.index_add(0, faces.corners.flatten().cpu(), shares)
    solved = splu((mass + length**2 * laplacian).tocsc()).solve(load.numpy())
    return torch.nn.functional.normalize(torch.from_numpy(solved), dim=-1)


def _matrices(faces: Faces) -> "tuple[csc_array, csc_array]":
    """Return the cotangent Laplacian and the mass matrix, `(V, V)` each."""
    from scipy.sparse import csc_array

    corners = faces.corners.cpu().numpy()
    area, length = (part.double().cpu().numpy() for part in (faces.area, faces.length))
    size = int(corners.max()) + 1
    square = length**2
    # cot of the angle at corner k, between the edges k + 1 and k + 2
    cotangent = (square.sum(1, keepdims=True) - 2 * square) / (4 * area[:, None])
    one, other = np.roll(corners, -1, 1), np.roll(corners, -2, 1)
    rows = np.concatenate([one, other, one, other], 1)
    columns = np.concatenate([other, one, one, other], 1)

    def assembled(values: np.ndarray) -> csc_array:
        pairs = (rows.ravel(), columns.ravel())
        return csc_array((values.ravel(), pairs), shape=(size, size))

    half = cotangent / 2
    laplacian = assembled(np.concatenate([-half, -half, half, half], 1))
    # over a face the mean of lambda_i lambda_j is 1/12, that of lambda_i^2 is 1/6
    share = np.repeat(area[:, None], 3, 1) / 12
    mass = assembled(np.concatenate([share, share, share, share], 1))
    return laplacian, mass
