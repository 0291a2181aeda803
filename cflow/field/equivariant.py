"""Velocities of clouds of particles, which follow every symmetry of the cloud.

    in space:  v(t, Q x + b) = Q v(t, x),    sum_i v_i = 0        for orthogonal Q, any shift b
    in a cell: v(t, x + b) = v(t, x),    v(t, x + P k) = v(t, x)  for any shift b, integers k
    both:      v(t, x_pi) = v(t, x)_pi                            for permutations of like particles

A flow along such a field, from a base with the same symmetries, has a density with them. In a cell,
axes are told apart: it may be long in one and short in another.

    v_i = P mean_j sum_k w_ijk sin(2 pi k (x_i - x_j) / P)

Source: Koehler, Klein and Noe (2020), Equivariant flows, arXiv 2006.02425; Satorras et al. (2021),
E(n) equivariant normalizing flows, arXiv 2105.09016; for cells Jiao et al. (2023), Crystal
structure prediction by joint equivariant diffusion, arXiv 2309.04475.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cflow.errors import DomainError, ShapeError, expect_positive, expect_trailing
from cflow.field.field import Field
from cflow.field.time import FourierTime, TimeEmbedding
from cflow.nets import EGNN, Messages
from cflow.typing import Points, Times

__all__ = ["CrystalField", "EquivariantField"]


class EquivariantField(Field):
    """Move particles in space by their distances; for clouds in `MeanFree()`.

    Args:
        event_shape: Shape of one cloud, `(particles, dims)`.
        context: Length of a vector that tells of the whole cloud, `(*batch, context)`; 0 for none.
        particle_context: Length of vectors that tell of each particle, in place of the former:
            a context `(*batch, particles, particle_context)`; 0 for none.
        types: The kind of each particle, counted from 0; alike where left out. Particles of one
            kind can be exchanged.
        hidden_features: Length of the vector of a particle.
        layers: Rounds of messages.
        length: Unit of length: about the distance of neighbours, in the units of the points.
        time: How the network sees time; `FourierTime(8)` by default.

    Raises:
        ShapeError: event_shape has not two axes, or there is not one type for each particle; on
            use, a context of another shape.
        DomainError: A size is out of range, types are negative, or both kinds of context are asked
            for; on use, a context where none is expected, or none where one is.

    References:
        Satorras, Hoogeboom and Welling (2021), E(n) equivariant graph neural networks, arXiv
        2102.09844.

    Example:
        >>> field = EquivariantField((4, 2))
        >>> x, t = torch.randn(7, 4, 2), torch.rand(7)
        >>> v = field(t, x)
        >>> torch.allclose(field(t, x.flip(-1) + 3.0), v.flip(-1), atol=1e-6)
        True
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        context: int = 0,
        *,
        particle_context: int = 0,
        types: Sequence[int] | None = None,
        hidden_features: int = 64,
        layers: int = 4,
        length: float = 1.0,
        time: TimeEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = _cloud("EquivariantField", event_shape)
        self.nodes = _Nodes(
            "EquivariantField",
            self.event_shape[0],
            hidden_features,
            time,
            context=context,
            particle_context=particle_context,
            types=types,
        )
        self.net = EGNN(hidden_features, layers=layers, length=length)

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        expect_trailing("EquivariantField", "x", x, self.event_shape)
        h = self.nodes(t, context)
        centred = x - x.mean(-2, keepdim=True)  # far from the origin, differences lose digits
        v = self.net(h, centred)[1] - centred
        return v - v.mean(-2, keepdim=True)


class CrystalField(Field):
    """Move particles in a periodic cell by their differences; for clouds on `Torus(P, ndim=2)`.

    Args:
        event_shape: Shape of one cloud, `(particles, dims)`, as fractional coordinates of atoms.
        context: Length of a vector that tells of the whole cloud, such as the lengths and angles of
            its cell, `(*batch, context)`; 0 for none.
        particle_context: Length of vectors that tell of each particle, in place of the former:
            a context `(*batch, particles, particle_context)`; 0 for none.
        types: The kind of each particle, counted from 0; alike where left out. Particles of one
            kind can be exchanged.
        period: Length P of the way round, the same for all axes.
        frequencies: Waves of a difference: k up to this number.
        hidden_features: Length of the vector of a particle.
        layers: Rounds of messages.
        time: How the network sees time; `FourierTime(8)` by default.
        drift: Whether the cloud may move as a whole; otherwise the mean velocity is zero. The
            velocity that matching regresses has a mean, so a field without drift may not fit it.

    Raises:
        ShapeError: event_shape has not two axes, or there is not one type for each particle; on
            use, a context of another shape.
        DomainError: A size is out of range, types are negative, or both kinds of context are asked
            for; on use, a context where none is expected, or none where one is.

    References:
        Jiao et al. (2023), arXiv 2309.04475; Miller et al. (2024), FlowMM, arXiv 2406.04713.

    Example:
        >>> field = CrystalField((5, 3), types=(0, 1, 2, 2, 2))
        >>> x, t = torch.rand(7, 5, 3), torch.rand(7)
        >>> torch.allclose(field(t, (x + 0.3) % 1.0), field(t, x), atol=1e-6)
        True
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        context: int = 0,
        *,
        particle_context: int = 0,
        types: Sequence[int] | None = None,
        period: float = 1.0,
        frequencies: int = 4,
        hidden_features: int = 64,
        layers: int = 4,
        time: TimeEmbedding | None = None,
        drift: bool = True,
    ) -> None:
        super().__init__()
        expect_positive("CrystalField", period=period, frequencies=frequencies, layers=layers)
        self.event_shape = _cloud("CrystalField", event_shape)
        self.nodes = _Nodes(
            "CrystalField",
            self.event_shape[0],
            hidden_features,
            time,
            context=context,
            particle_context=particle_context,
            types=types,
        )
        self.period, self.frequencies, self.drift = period, frequencies, drift
        waves = frequencies * self.event_shape[1]
        self.layers = nn.ModuleList(
            Messages(hidden_features, 2 * waves, waves) for _ in range(layers)
        )

    def forward(self, t: Times, x: Points, context: Tensor | None = None) -> Points:
        expect_trailing("CrystalField", "x", x, self.event_shape)
        h = self.nodes(t, context)
        away = x[..., :, None, :] - x[..., None, :, :]
        k = torch.arange(1, self.frequencies + 1, dtype=x.dtype, device=x.device)
        phase = (2 * math.pi / self.period) * (away[..., None] * k).flatten(-2)
        sine = phase.sin()
        edges = torch.cat([sine, phase.cos()], -1).to(h.dtype)
        v = torch.zeros_like(x)
        for layer in self.layers:
            h, weight = layer(h, edges)
            pulls = (weight.to(x.dtype) * sine).mean(-2)
            v = v + self.period * pulls.unflatten(-1, (-1, self.frequencies)).sum(-1)
        return v if self.drift else v - v.mean(-2, keepdim=True)


class _Nodes(nn.Module):
    """Tell each particle the time, the context and its type: vectors `(*batch, n, features)`."""

    def __init__(
        self,
        where: str,
        particles: int,
        features: int,
        time: TimeEmbedding | None,
        *,
        context: int,
        particle_context: int,
        types: Sequence[int] | None,
    ) -> None:
        super().__init__()
        expect_positive(where, hidden_features=features)
        if min(context, particle_context) < 0 or context * particle_context:
            raise DomainError(
                f"{where}: the context tells of the cloud or of each particle, got context="
                f"{context} and particle_context={particle_context}; repeat what tells of the "
                "cloud in the vectors of particles if you want both"
            )
        kinds = [0] * particles if types is None else list(types)
        if len(kinds) != particles:
            raise ShapeError(
                f"{where}: types must name a kind for each of {particles} particles, got "
                f"{len(kinds)}"
            )
        if min(kinds) < 0:
            raise DomainError(f"{where}: types are counted from 0, got {min(kinds)}")
        self.where, self.context, self.particle_context = where, context, particle_context
        self.particles = particles
        self.time = FourierTime(8) if time is None else time
        self.kind: Tensor
        self.register_buffer("kind", torch.tensor(kinds), persistent=False)
        self.types = nn.Embedding(max(kinds) + 1, features)
        self.given = nn.Linear(self.time.features + context + particle_context, features)

    def forward(self, t: Tensor, context: Tensor | None) -> Tensor:
        length = self.context or self.particle_context
        if (context is None) != (length == 0):
            got = "none" if context is None else f"one of shape {tuple(context.shape)}"
            raise DomainError(
                f"{self.where}: expected {f'a context of length {length}' if length else 'none'}, "
                f"got {got}; build the field with context or particle_context, or without"
            )
        seen = self.time(t)[..., None, :]
        if context is not None:
            one = (self.context,) if self.context else (self.particles, self.particle_context)
            expect_trailing(self.where, "context", context, (*t.shape, *one))
            given = context[..., None, :] if self.context else context
            seen = torch.cat([seen.expand(*given.shape[:-1], -1), given.to(seen.dtype)], -1)
        dtype = self.given.weight.dtype
        return self.given(seen.to(dtype)) + self.types(self.kind)


def _cloud(where: str, event_shape: Sequence[int]) -> tuple[int, int]:
    if len(event_shape) != 2 or min(event_shape) < 1:
        raise ShapeError(
            f"{where}: a cloud has shape (particles, dims), got {tuple(event_shape)}; an ODE along "
            "it takes a manifold with ndim=2"
        )
    return event_shape[0], event_shape[1]
