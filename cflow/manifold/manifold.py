"""The contract of a manifold, with the method names of geoopt.

A manifold handed to an `ODE` only needs `projx` and `proju` to sample and train, so geoopt's fit.
A likelihood needs more, which our `Manifold` says: a frame of its tangent spaces, over which the
divergence of a field is summed, and where the metric is not that of the space around, its volume.

    div v = sum_k e^k (D_{e_k} v) + v . grad log sqrt(det g)

Source: Mathieu and Nickel (2020), Riemannian continuous normalizing flows, arXiv 2006.10605; Lee
(2018), Introduction to Riemannian manifolds, chapters 5 and 6.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Generator, Tensor
from torch.func import jvp

from cflow.errors import DomainError, plain
from cflow.typing import Frame

__all__ = [
    "Compact",
    "Geodesics",
    "Manifold",
    "Projector",
    "Steps",
    "described",
    "expect_on",
    "geodesic_by_jvp",
    "log_rate_by_jvp",
]

Steps: TypeAlias = Literal["projected", "exponential"]

TOLERANCE = 1e-4  # how far from a manifold a point may lie, in its own units, before it is refused


@runtime_checkable
class Projector(Protocol):
    """The least that an ODE asks of a manifold; geoopt's manifolds satisfy it."""

    ndim: int

    def projx(self, x: Tensor) -> Tensor:
        """Return the nearest point of the manifold."""
        ...

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Return the tangent part of u at x."""
        ...


@runtime_checkable
class Geodesics(Projector, Protocol):
    """What geodesic paths ask of a manifold besides; geoopt's manifolds satisfy it."""

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """Follow the geodesic that leaves x with velocity u for one unit of time."""
        ...

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the velocity at x of a shortest geodesic that reaches y at time one."""
        ...


class Manifold(ABC):
    """A space in which points live, with its metric and its volume.

    Args:
        steps: How a solver steps. "projected": in the space around, and back by `projx` after each
            step. "exponential": along geodesics, by a Runge-Kutta scheme in the normal coordinates
            of the point where the step starts, which never leaves the manifold; it costs a `logmap`
            for each evaluation of the field.

    Attributes:
        ndim: Number of trailing axes that make up one point.
        loop: Length after which every geodesic is back where it left, with its velocity; inf where
            none returns and `expmap` is one to one; None where neither is so, or it is not known.
            It tells the other geodesics from x to y, whose lengths are `dist` plus its multiples.
        smooth_frame: Whether `frame` is smooth all over the manifold, as none is on most spheres.
        orthonormal_frame: Whether it is orthonormal in the metric.
        creased: Whether tangent planes jump somewhere, as they do at the edges of a mesh. There a
            field that is merely projected makes or loses mass, and has no likelihood.
    """

    ndim: int
    loop: float | None = None
    smooth_frame: bool = False
    orthonormal_frame: bool = False
    creased: bool = False

    def __init__(self, *, steps: Steps = "projected") -> None:
        if steps not in Steps.__args__:
            raise DomainError(
                f"{type(self).__name__}: steps must be one of {Steps.__args__}, got {steps!r}"
            )
        self.steps: Steps = steps

    @abstractmethod
    def projx(self, x: Tensor) -> Tensor:
        """Return the nearest point of the manifold."""

    @abstractmethod
    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Return the tangent part of u at x."""

    @abstractmethod
    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """Follow the geodesic that leaves x with velocity u for one unit of time."""

    @abstractmethod
    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the velocity at x of a shortest geodesic that reaches y at time one.

        On the cut locus several are shortest, and one of them comes back; see `cut_locus`.

        Raises:
            DomainError: All directions are shortest, so that no one can be told, or y is not
                reached at all.
        """

    @abstractmethod
    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the geodesic distance, `(*batch,)`; exactly 0 from a point to itself."""

    @abstractmethod
    def inner(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        """Return the inner product of two tangent vectors at x, `(*batch,)`."""

    @abstractmethod
    def check_point(self, x: Tensor, *, atol: float = 1e-5) -> tuple[bool, str]:
        """Say whether x lies on the manifold, and by how much it does not."""

    @abstractmethod
    def dim(self, shape: Sequence[int]) -> int:
        """Return the dimension of the manifold whose points have this shape.

        Raises:
            ShapeError: No point has this shape.
        """

    @abstractmethod
    def log_volume(self, shape: Sequence[int]) -> float:
        """Return the log of the total volume for points of this shape; inf if unbounded."""

    @abstractmethod
    def frame(self, x: Tensor) -> Frame | None:
        """Return a basis of the tangent space at x and its dual, `(*batch, dim, *event)` each.

        The covectors give 1 with their own vector, 0 with the others, and 0 with whatever is normal
        to the manifold. They are what a divergence is summed over. None stands for the entries
        of a point themselves, where those are coordinates of the manifold.
        """

    @abstractmethod
    def log_volume_element(self, x: Tensor) -> Tensor | None:
        """Return log sqrt(det g) at x `(*batch,)`, up to a constant that is the same everywhere.

        It is that of the metric against the volume which the vectors of a frame orthonormal in the
        space around would span; None where it is constant.
        """

    @abstractmethod
    def log_det_exp(self, x: Tensor, u: Tensor) -> Tensor:
        """Return log|det d expmap(x, u) / du| between Riemannian volumes, `(*batch,)`."""

    @abstractmethod
    def cut_locus(self, x: Tensor, y: Tensor, *, atol: float = 1e-6) -> Tensor:
        """Say whether more than one shortest geodesic joins x and y, `(*batch,)`.

        Args:
            x: Points.
            y: Points.
            atol: How near the cut locus counts as on it, in units of distance.
        """

    @abstractmethod
    def geodesic(self, x: Tensor, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the geodesic that leaves x with velocity u is at time s, and its velocity.

        Args:
            x: Points `(*batch, *event)`.
            u: Velocities at x.
            s: Times `(*batch,)`.
        """

    @abstractmethod
    def log_rate(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Return how fast u changes where y = expmap(x, u) moves with velocity v, and x stays.

        It is the inverse of the derivative of the exponential, applied to v.
        """


class Compact(Manifold):
    """A manifold of finite volume, on which there is a uniform law."""

    @abstractmethod
    def uniform(
        self,
        shape: Sequence[int],
        event_shape: Sequence[int],
        *,
        like: Tensor,
        generator: Generator | None = None,
    ) -> Tensor:
        """Draw points uniformly by volume, `(*shape, *event_shape)`.

        Args:
            shape: How many, on any axes.
            event_shape: Shape of one point.
            like: A tensor whose dtype and device they take.
            generator: Source of the randomness.
        """


def expect_on(
    where: str, name: str, manifold: Projector, x: Tensor, *, atol: float | None = None
) -> None:
    """Raise `DomainError` for points off a manifold, saying how far; silent in traced graphs.

    Args:
        where: Name of the caller, for the message.
        name: Name of the points there.
        manifold: One of ours; other manifolds are not asked.
        x: Points `(*batch, *event)`.
        atol: How far off is too far; 1e-4 by default, more in precisions below float32.

    Example:
        >>> from cflow.manifold import Sphere
        >>> expect_on("page", "x", Sphere(), torch.tensor([[0.0, 0.0, 1.0]]))
    """
    if not isinstance(manifold, Manifold) or not plain() or not x.numel():
        return
    if atol is None:
        atol = max(TOLERANCE, 4 * torch.finfo(x.dtype).eps)
    on, reason = manifold.check_point(x.detach(), atol=atol)
    if not on:
        raise DomainError(
            f"{where}: {name} must lie on {manifold}, but {reason}; bring the points there by "
            f"{type(manifold).__name__}.projx if that is what you mean"
        )


def geodesic_by_jvp(manifold: Geodesics, x: Tensor, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Give what `Manifold.geodesic` gives by differentiating `expmap`, for any manifold with one.

    Example:
        >>> from cflow.manifold import Sphere
        >>> north, east = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
        >>> geodesic_by_jvp(Sphere(), north, east, torch.tensor(0.0))[1]
        tensor([1., 0., 0.])
    """
    shape = s.shape + (1,) * manifold.ndim
    along = lambda s: manifold.expmap(x, s.reshape(shape) * u)
    point, velocity = jvp(along, (s,), (torch.ones_like(s),))[:2]
    return point, velocity


def log_rate_by_jvp(manifold: Geodesics, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """Give what `Manifold.log_rate` gives by differentiating `logmap`."""
    return jvp(lambda y: manifold.logmap(x, y), (y,), (v,))[1]


def described(manifold: Manifold, *options: str) -> str:
    """Return how a manifold is written, with those of its options that are not at their default."""
    steps = [] if manifold.steps == "projected" else [f"steps={manifold.steps!r}"]
    return f"{type(manifold).__name__}({', '.join([*options, *steps])})"
