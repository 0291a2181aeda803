"""Molecules as elements and places: made by RDKit, judged by distances alone, and drawn.

    bonded:  d_ij < 1.2 (r_i + r_j),    overlapping:  d_ij < 0.7 (r_i + r_j)

with covalent radii r. Hydrogen is left out of everything.
Source: Cordero et al. (2008), Covalent radii revisited, Dalton Transactions (radii); Riniker and
Landrum (2015), Better informed distance geometry, Journal of Chemical Information and Modeling 55
(ETKDG).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from torch import Generator, Tensor

from cflow.errors import DataError, MissingExtraError
from cflow.jump import Mixed
from cflow.plots.figure import figure_of, save_figure

ELEMENTS = ("C", "N", "O", "F")
RADII = torch.tensor([0.76, 0.71, 0.66, 0.57])  # angstrom
NEIGHBOURS = torch.tensor([4, 4, 2, 1])  # heavy atoms that an element is bound to, at most
COLOURS = ("#444444", "#1b6ca8", "#c8553d", "#3a7d44")
ATOMS = 9


def made(strings: tuple[str, ...], count: int, seed: int, cache: Path) -> Mixed:
    """Return elements and centred places in angstrom of molecules of nine heavy atoms.

    Strings are taken in random order, atoms are put in random order, and a molecule for which no
    geometry is found is passed over. What was made once is read from `cache`.
    """
    if not cache.is_file():
        generator = Generator().manual_seed(seed)
        found: list[tuple[Tensor, Tensor]] = []
        for k in torch.randperm(len(strings), generator=generator).tolist():
            molecule = geometry(strings[k], seed)
            if molecule is not None:
                order = torch.randperm(ATOMS, generator=generator)
                found.append((molecule[0][order], molecule[1][order]))
            if len(found) == count:
                break
        else:
            raise DataError(f"mixed: wanted {count} molecules of {ATOMS} atoms, got {len(found)}")
        tokens, x = (torch.stack(part) for part in zip(*found, strict=True))
        np.savez_compressed(cache, tokens=tokens.numpy(), x=x.numpy())
    file = np.load(cache, allow_pickle=False)
    x = torch.from_numpy(file["x"])
    return Mixed(torch.from_numpy(file["tokens"]), (x - x.mean(1, keepdim=True)).float())


def geometry(name: str, seed: int) -> tuple[Tensor, Tensor] | None:
    """Return the heavy atoms of a SMILES and where ETKDG puts them; None for other molecules."""
    try:
        from rdkit import Chem, RDLogger
        from rdkit.Chem import rdDistGeom
    except ImportError as error:
        raise MissingExtraError(
            "mixed: rdkit is not installed; pip install 'cflow[molecules]'"
        ) from error
    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
    molecule = Chem.MolFromSmiles(name)
    if molecule is None or molecule.GetNumAtoms() != ATOMS:
        return None
    symbols = [atom.GetSymbol() for atom in molecule.GetAtoms()]
    if not set(symbols) <= set(ELEMENTS):
        return None
    full = Chem.AddHs(molecule)  # heavy atoms come first
    options = rdDistGeom.ETKDGv3()  # type: ignore[attr-defined]
    options.randomSeed, options.maxIterations = seed, 20
    if rdDistGeom.EmbedMolecule(full, options) != 0:  # type: ignore[attr-defined]
        return None
    places = torch.from_numpy(full.GetConformer().GetPositions()[:ATOMS].copy())
    return torch.tensor([ELEMENTS.index(s) for s in symbols]), places


def pairs(z: Mixed) -> tuple[Tensor, Tensor]:
    """Return distances `(n, atoms, atoms)` in angstrom, and in units of the sum of radii."""
    d = torch.cdist(z.x, z.x, compute_mode="donot_use_mm_for_euclid_dist")
    d = d + torch.diag(torch.full((z.x.shape[1],), torch.inf))
    r = RADII[z.tokens]
    return d, d / (r[:, :, None] + r[:, None])


def compared(z: Mixed, data: Mixed) -> dict[str, float]:
    """Return the figures of the table, of drawn molecules against others."""
    d, relative = pairs(z)
    bonds = relative < 1.2
    apart = relative.flatten(1).amin(1) > 0.7
    reached = torch.eye(z.x.shape[1], dtype=torch.bool) | bonds
    for _ in range(4):  # paths of up to 16 bonds
        reached = reached.float() @ reached.float() > 0
    whole = apart & reached.flatten(1).all(1)
    allowed = (bonds.sum(-1) <= NEIGHBOURS[z.tokens]).all(1)
    share = lambda tokens: torch.bincount(tokens.flatten(), minlength=4) / tokens.numel()
    of_data = pairs(data)[0]
    upper = torch.triu_indices(z.x.shape[1], z.x.shape[1], 1).unbind()
    return {
        "elements": 0.5 * (share(z.tokens) - share(data.tokens)).abs().sum().item(),
        "whole": whole.float().mean().item(),
        "sound": (whole & allowed).float().mean().item(),
        "neighbours": far(d.amin(-1), of_data.amin(-1)),
        "pairs": far(d[:, *upper], of_data[:, *upper]),
    }


def far(a: Tensor, b: Tensor) -> float:
    """Return the 1-Wasserstein distance of numbers."""
    return float(wasserstein_distance(a.flatten().numpy(), b.flatten().numpy()))


def picture(path: Path, rows: dict[str, Mixed]) -> None:
    """Draw rows of molecules, each under its label, as balls at their atoms and lines of bonds."""
    columns = min(len(z.x) for z in rows.values())
    figure = figure_of((2.1 * columns, 2.2 * len(rows)))
    for row, (label, z) in enumerate(rows.items()):
        bonds = pairs(z)[1] < 1.2
        for column in range(columns):
            ax: Any = figure.add_subplot(len(rows), columns, row * columns + column + 1)
            x = flat(z.x[column])
            for i, j in bonds[column].triu().nonzero().tolist():
                ax.plot(*x[[i, j], :2].T.numpy(), color="0.6", linewidth=2, zorder=1)
            for k, element in enumerate(ELEMENTS):
                for atom in x[z.tokens[column] == k].tolist():
                    ax.plot(*atom[:2], "o", color=COLOURS[k], markersize=9, zorder=20 + atom[2])
                ax.plot([], [], "o", color=COLOURS[k], label=element)
            ax.set(xlim=(-4.5, 4.5), ylim=(-4, 4), aspect="equal")  # angstrom
            ax.axis("off")
            if column == 0:
                ax.set_title(label, fontsize=9, loc="left")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="upper right", ncols=4)
    save_figure(figure, path)


def flat(x: Tensor) -> Tensor:
    """Turn a molecule so that it is seen from where it is widest."""
    return x @ torch.linalg.svd(x - x.mean(0)).Vh.T
