"""How often the backbone of a protein turns which way: three densities on a torus, known exactly.

    log p(phi, psi) = log P[bin] - 2 log w,    w = 2 degrees in radians
    H = -sum of P[bin] log p

A table of 180 x 180 bins is taken as a density that is constant on every bin. So there are exact
draws, exact log densities and an exact entropy H, and a model is judged by how far its negative
log-likelihood lies above H: that distance is the Kullback-Leibler divergence.

These are smoothed tables of the Top500 set of proteins, not the sampled angles on which figures for
flows on tori were published; do not compare with those.

Source: Lovell et al. (2003), Structure validation by C-alpha geometry, Proteins 50; copies in
gerdos/PyRAMA.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from cflow.data.delimited import text
from cflow.data.fetch import RemoteFile, fetch, find
from cflow.errors import DataError, DomainError, ShapeError, expect_floating

__all__ = ["FILES", "PACKED", "Density", "load"]

BINS = 180
WIDTH = 2 * math.pi / BINS  # radians

ADDRESS = (
    "https://raw.githubusercontent.com/gerdos/PyRAMA/"
    "47e2a398b21dc05b380c8e312206ef1b2d7cfde9/pyrama/data/"
)

FILES = {
    "general": RemoteFile(
        "rama_top500/pref_general.data",
        ADDRESS + "pref_general.data",
        "80be91ae691ad051ff1f099d5c90ddbd415bd9936128591209debf24a99a374b",
    ),
    "proline": RemoteFile(
        "rama_top500/pref_proline.data",
        ADDRESS + "pref_proline.data",
        "62fdf00da8d43e23325d2aae8d2bf68fa927625bc2e24d091e38369b93321c1a",
    ),
    "preproline": RemoteFile(
        "rama_top500/pref_preproline.data",
        ADDRESS + "pref_preproline.data",
        "375607e4b9b666db62ba8e3c488b3f1e0249cb867770397ca6c8e37a4a0690a1",
    ),
}

# The same files, gzipped: read where they lie on disk, offered by no address.
PACKED = {
    "general": RemoteFile(
        "rama_top500/pref_general.data.gz",
        ADDRESS + "pref_general.data",
        "0eceab034f0f333f38f31a749269d351c4da805726480301c53e655da662c16c",
    ),
    "proline": RemoteFile(
        "rama_top500/pref_proline.data.gz",
        ADDRESS + "pref_proline.data",
        "0b4a6bd165fa344077aa44eb89bf6f7b9440e70a0aeb00e6bede385948e437ad",
    ),
    "preproline": RemoteFile(
        "rama_top500/pref_preproline.data.gz",
        ADDRESS + "pref_preproline.data",
        "af6d464e58af9448c786e537e09fd673f318afe0a909b3bf7f6b90d4719b5bb1",
    ),
}


@dataclass(frozen=True)
class Density:
    """Be a density on the torus that is constant on every bin of two degrees.

    Args:
        grid: Log density in nats per square radian, `(180, 180)`, rows for phi and columns for psi,
            bin k from 2 k to 2 k + 2 degrees; minus infinity where nothing lies.

    Raises:
        ShapeError: The grid has another shape.
        DomainError: The density does not integrate to one, to 1e-6.

    Example:
        >>> uniform = Density(torch.full((180, 180), -2 * math.log(2 * math.pi)))
        >>> round(uniform.entropy, 4)
        3.6758
        >>> uniform.log_prob(torch.tensor([0.1, -7.0]))
        tensor(-3.6758)
        >>> uniform.sample(5, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([5, 2])
    """

    grid: Tensor

    def __post_init__(self) -> None:
        if self.grid.shape != (BINS, BINS):
            raise ShapeError(
                f"Density: grid must be ({BINS}, {BINS}), got {tuple(self.grid.shape)}"
            )
        mass = self._weights.sum().item()
        if not abs(mass - 1) < 1e-6:
            raise DomainError(
                f"Density: grid must be a log density per square radian that integrates to 1, got "
                f"{mass:g}; subtract the logarithm of its integral"
            )

    @property
    def entropy(self) -> float:
        """Return the entropy in nats: the least negative log-likelihood that a model can reach.

            H = -sum of P[bin] log p[bin]

        Example:
            >>> load("general").entropy  # doctest: +SKIP
            1.62884...
        """
        weights = self._weights
        return -torch.where(weights > 0, weights * self.grid.double(), 0.0).sum().item()

    def log_prob(self, angles: Tensor) -> Tensor:
        """Return the log density of pairs of angles, in nats per square radian.

        Args:
            angles: phi and psi in radians, `(*batch, 2)`; taken modulo 2 pi.

        Returns:
            `(*batch,)`, in the dtype of angles, float32 at least; minus infinity where nothing lies
            and NaN where an angle is NaN or infinite. It is constant on every bin: no gradients.

        Raises:
            ShapeError: angles does not end in two.
            DomainError: angles is not floating.

        Example:
            >>> load("proline").log_prob(torch.tensor([-1.1, 2.6]))  # doctest: +SKIP
        """
        if not angles.dim() or angles.shape[-1] != 2:
            raise ShapeError(
                f"Density.log_prob: expected phi and psi `(*batch, 2)`, got {tuple(angles.shape)}"
            )
        expect_floating("Density.log_prob", angles)
        dtype = torch.promote_types(angles.dtype, torch.float32)
        bins = (torch.remainder(angles.double(), 2 * math.pi) / WIDTH).floor()
        known = torch.isfinite(bins)
        bins = torch.where(known, bins, 0.0).long().clamp(0, BINS - 1)
        found = self.grid.to(angles.device, dtype)[bins[..., 0], bins[..., 1]]
        return torch.where(known.all(-1), found, torch.nan)

    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        """Draw exactly: a bin by its probability, then a point of it evenly.

        Args:
            n: How many points, one or more.
            generator: Source of the randomness, on the device of the grid.

        Returns:
            phi and psi in radians in [0, 2 pi), `(n, 2)`, float64.

        Raises:
            DomainError: n is below one.

        Example:
            >>> angles = load("general").sample(1000)  # doctest: +SKIP
        """
        if n < 1:
            raise DomainError(f"Density.sample: n must be one or more, got {n}")
        weights = self._weights.flatten()
        bins = torch.multinomial(weights, n, replacement=True, generator=generator)
        corner = torch.stack([bins // BINS, bins % BINS], dim=-1)
        within = torch.rand(
            corner.shape, dtype=torch.float64, device=corner.device, generator=generator
        )
        return (corner + within) * WIDTH

    @property
    def _weights(self) -> Tensor:
        return self.grid.double().exp() * WIDTH**2


def load(name: str) -> Density:
    """Load the density of a class of residues.

    Args:
        name: `general` (neither glycine nor proline nor before a proline; 10420 of the 32400 bins
            are empty, entropy 1.62884 nats), `proline` (24802, 0.54829) or `preproline` (before a
            proline; 21312, 1.14561).

    Returns:
        The density, float64.

    Raises:
        DomainError: There is no such class.
        DataError: The file is damaged, or its address cannot be reached.
        MissingExtraError: The file has to be fetched and pooch is not installed.

    Example:
        >>> list(FILES)
        ['general', 'proline', 'preproline']
        >>> density = load("general")  # doctest: +SKIP
    """
    if name not in FILES:
        raise DomainError(f"ramachandran.load: there is no class {name!r}; known are {list(FILES)}")
    packed = find(PACKED[name]) is not None and find(FILES[name]) is None
    path = fetch(PACKED[name] if packed else FILES[name])
    table = torch.from_numpy(np.loadtxt(text("ramachandran.load", path).splitlines()))
    bins = torch.remainder((table[:, :2] - 1) / 2, BINS)  # -179 degrees is 181: bin 90
    height = torch.full((BINS, BINS), torch.nan, dtype=torch.float64)
    height[bins[:, 0].long(), bins[:, 1].long()] = table[:, 2]
    if not bool((height >= 0).all()) or not torch.equal(bins, bins.round()):
        raise DataError(f"ramachandran.load: {path} does not hold one height for every bin")
    return Density((height / height.sum()).log() - 2 * math.log(WIDTH))
