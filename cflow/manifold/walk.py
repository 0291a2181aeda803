"""Straight walks over a surface of triangles: straight in each face, unfolded over each edge.

A walk from q straight to p in the plane of a face leaves over the first edge that it meets, and
goes on in the plane across, in whose coordinates the rest is a straight line again. All that is
left of it in the end is a face and an isometry, the composed unfolding

    q' = turn q + shift,      w' = turn w

from the plane of the first face to that of the last, so derivatives need not retrace the steps.
Source: Polthier and Schmies (1998), Straightest geodesics on polyhedral surfaces.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cflow.errors import SolverError, known
from cflow.manifold.triangles import Faces, rotated

__all__ = ["Walk", "walk"]

LONGEST = 100_000  # edges that a walk may cross


class Walk(NamedTuple):
    """Hold where walks led, `(N, ...)` each.

    Attributes:
        start: The face where it starts.
        end: The face where it ends.
        turn: The composed rotation of coordinates, `(N, 2)`.
        shift: The shift after it, `(N, 2)`.
        ended: Whether it has come to its end, `(N,)`.
    """

    start: Tensor
    end: Tensor
    turn: Tensor
    shift: Tensor
    ended: Tensor


def walk(faces: Faces, face: Tensor, q: Tensor, p: Tensor, *, crossings: int) -> Walk:
    """Walk straight from points q to points p of the planes of faces, `(N, 2)` each.

    Where values can be looked at, it goes on until all have arrived; elsewhere a walk that crosses
    more than `crossings` edges ends in NaN, which a solver reports.

    Raises:
        SolverError: A walk does not end.
    """
    start = face
    entry = torch.full_like(face, 3)  # no edge
    turn = torch.cat([torch.ones_like(q[..., :1]), torch.zeros_like(q[..., :1])], -1)
    shift = torch.zeros_like(q)
    edges = torch.arange(3, device=face.device)
    on = torch.zeros_like(face, dtype=torch.bool)
    for crossed in range(LONGEST + 1):
        here, there = faces.heights(face, q).clamp(min=0), faces.heights(face, p)
        leaves = (there < 0) & (edges != entry[..., None])
        on = leaves.any(-1)
        any_on = known(on.any())
        if any_on is False or (any_on is None and crossed == crossings):
            break
        share = torch.where(leaves, here / torch.where(leaves, here - there, 1.0), torch.inf)
        edge = share.argmin(-1, keepdim=True)
        hit = q + share.gather(-1, edge) * (p - q)
        edge = edge.squeeze(-1)
        over, move = faces.turn[face, edge], faces.shift[face, edge]
        mine = on[..., None]
        q = torch.where(mine, rotated(hit, over) + move, q)
        p = torch.where(mine, rotated(p, over) + move, p)
        shift = torch.where(mine, rotated(shift, over) + move, shift)
        turn = torch.where(mine, rotated(turn, over), turn)
        entry = torch.where(on, faces.entry[face, edge], entry)
        face = torch.where(on, faces.across[face, edge], face)
    else:
        raise SolverError(
            f"Mesh: a walk has crossed {LONGEST} edges and goes on; its velocity is too large for "
            "the surface: take smaller steps"
        )
    ended = ~on
    turn, shift = (torch.where(ended[..., None], part, torch.nan) for part in (turn, shift))
    return Walk(start, face, turn, shift, ended)
