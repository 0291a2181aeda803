"""Fisher flows: tokens as vertices of the simplex in the metric of Fisher and Rao.

    r = sqrt p on the unit sphere, where no entry is negative;    x_t = exp_{x_0}(t log_{x_0}(e_i))

    v(t, x) = sum_i p(x1 = i | x) log_x(e_i) / (1 - t)

Roots of probabilities turn the simplex into a part of a sphere, on which geodesics are great
circles and nothing is singular, while the metric of the simplex is so at each vertex. Velocities
point inwards where an entry is zero, and a step of Euler's never leaves that part: entry j becomes
(1 - h / (1 - t)) times itself at least.

There is no bound on the likelihood. At t = 1 all points are vertices, which have no density, and
shortly before that each vertex has a small cap of points around it; the ODE of a learned field
takes some of the cap back to roots below zero, from where no point ever starts.
Source: Davis et al. (2024), Fisher flow matching for generative modeling over discrete data, arXiv
2405.14664.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from cflow.base import Base
from cflow.errors import DomainError, expect_trailing
from cflow.jump.vertices import SideBySide, VertexPath, expect_vertices, expect_vocabulary
from cflow.manifold import Projector, Sphere
from cflow.manifold.radial import asinhc_root
from cflow.matching.geodesic import GeodesicPath
from cflow.matching.path import PathPoint
from cflow.state import State
from cflow.transport import Likelihood, Transport
from cflow.typing import Batch, Points, Times

__all__ = ["FisherPath"]

MARGIN = 1e-3  # of time before 1, at which the velocity is held

SPHERE = Sphere()


@dataclass(frozen=True)
class FisherPath(VertexPath):
    """Go to a vertex along the geodesic of Fisher and Rao, at constant speed.

    Points are roots of probabilities. Take a solver that does not look at t = 1, where velocities
    grow like 1 / (1 - t): `Euler`, `Midpoint`.

    Attributes:
        vocabulary: How many values a token has, at least 2.

    Raises:
        DomainError: The vocabulary is below 2.

    References:
        Davis et al. (2024), arXiv 2405.14664.

    Example:
        >>> root, vertex = torch.tensor([[0.6, 0.8, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])
        >>> x = FisherPath(3).sample(root, vertex, torch.tensor([0.5])).x
        >>> [round(k, 3) for k in x.square()[0].tolist()]
        [0.18, 0.32, 0.5]
    """

    vocabulary: int

    def __post_init__(self) -> None:
        expect_vocabulary("FisherPath", self.vocabulary)

    def sample(self, x0: Points, x1: Points, t: Times, *, noise: Tensor | None = None) -> PathPoint:
        """Return points of the path; arguments as for any `Path`.

        Args:
            x0: Starts, roots of probabilities `(*batch, *event, vocabulary)`.
            x1: Vertices, unit vectors of the same shape.
            t: Times in [0, 1], `(*batch,)`.
            noise: Not used.
        """
        expect_vertices("FisherPath.sample", x0, x1, t, self.vocabulary)
        each = t.reshape(t.shape + (1,) * (x1.dim() - 1 - t.dim())).expand(x1.shape[:-1])
        return GeodesicPath(SPHERE).sample(x0, x1, each)._replace(t=t)

    @property
    def random(self) -> bool:
        return False

    def velocity(self, t: Times, x: Points, posterior: Tensor) -> Points:
        square = 0.5 * (x - 1)  # minus the squared sine of half the angle to each vertex
        stretch = asinhc_root(square) * (1 + square).rsqrt()  # that angle over its sine
        pulls = posterior.to(x.dtype) * stretch
        left = (1 - t).clamp_min(MARGIN)
        v = pulls - (pulls * x).sum(-1, keepdim=True) * x
        return v / left.reshape(left.shape + (1,) * (x.dim() - left.dim()))

    def tangent(self, x: Points, u: Points) -> Points:
        return SPHERE.proju(x, u)

    def base(self, event_shape: Sequence[int]) -> Base:
        return EvenRoots((*event_shape, self.vocabulary))

    def manifold(self, axes: int) -> Projector:
        return SideBySide(SPHERE, axes + 1)

    def nearest(self, axes: int) -> Transport:
        return NearestVertex(self.vocabulary)


class NearestVertex(Transport):
    """Take the largest entry of a point for its token; there is no way back."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def push(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        expect_trailing("NearestVertex.push", "x", state.x, (self.vocabulary,))
        return State(state.x.argmax(-1), nfe=state.nfe)

    def pull(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        raise DomainError(
            "NearestVertex.pull: a Fisher flow ends in vertices, where there is no density, so "
            "that it has no likelihood and no bound; take a DirichletPath for a bound"
        )

    @property
    def likelihood(self) -> Likelihood:
        return "bound"

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[:-1]


class EvenRoots(Base):
    """Draw roots of probabilities evenly from the part of the sphere where none is negative.

    Args:
        event_shape: Shape of one point, the values of a token last.
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self.like: Tensor
        self.register_buffer("like", torch.tensor(0.0), persistent=False)

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        full = (*shape, *self.event_shape)
        like = self.like
        noise = torch.randn(full, dtype=like.dtype, device=like.device, generator=generator)
        return SPHERE.projx(noise.abs())

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        x = self._enter(x)
        values = self.event_shape[-1]
        inside = values * math.log(2) - SPHERE.log_volume((values,))
        each = torch.where((x >= 0).all(-1), inside, -torch.inf).to(x.dtype)
        tokens = len(self.event_shape) - 1
        return each.flatten(each.dim() - tokens).sum(-1) if tokens else each
