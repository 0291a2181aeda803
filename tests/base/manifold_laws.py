"""The registry of laws on manifolds, away from their initialisation, and grids of their volumes.

Grids are centred on a point, so that a density which is infinite there is met with a vanishing
volume. Their volumes are closed forms of their own, and no method of a manifold.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from cflow.base import (
    Base,
    Components,
    Joint,
    ManifoldUniform,
    ProjectedNormal,
    VonMises,
    VonMisesFisher,
    VonMisesFisherMixture,
    VonMisesMixture,
    WrappedNormal,
)
from cflow.manifold import (
    AffineInvariantSPD,
    Euclidean,
    Lorentz,
    PoincareBall,
    Product,
    Quaternions,
    Rotations,
    Sphere,
    Torus,
)

Grid = tuple[Tensor, Tensor]
TURN = 2 * math.pi


@dataclass(frozen=True)
class ManifoldLaw:
    """A base on a manifold, a grid of its support, and what is true of its gradients.

    `grid` takes the mean of the law, where it has one. Gradients through `sample` are right for
    every parameter whose name holds no word of `missing`. `lift` gives coordinates
    of points that are smooth all over the manifold.
    """

    name: str
    build: Callable[[], Base]
    grid: Callable[[Tensor], Grid]
    missing: tuple[str, ...] = ()
    lift: Callable[[Tensor], Tensor] = lambda x: x.flatten(1)

    def make(self, seed: int = 0) -> Base:
        """Build the law with parameters perturbed."""
        torch.manual_seed(seed)
        base = self.build()
        for parameter in base.parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
        return base

    def nodes(self, base: Base) -> Grid:
        """Return points `(m, *event)` and their volumes `(m,)`."""
        return self.grid(dict(base.named_parameters()).get("mean", torch.zeros(1)).detach())


def legendre(low: float, high: float, count: int) -> Grid:
    x, w = (torch.from_numpy(a) for a in leggauss(count))
    return low + 0.5 * (high - low) * (x + 1), 0.5 * (high - low) * w


def angles(count: int, period: float = TURN) -> Grid:
    """Return angles evenly round, none of them at zero."""
    return (torch.arange(count) + 0.5) * (period / count), torch.full((count,), period / count)


def outer(*axes: Grid) -> tuple[list[Tensor], Tensor]:
    """Return coordinates of a product grid, flat, and the products of the weights."""
    points = torch.meshgrid(*[x for x, _ in axes], indexing="ij")
    weights = torch.meshgrid(*[w for _, w in axes], indexing="ij")
    return [p.flatten() for p in points], torch.stack(weights).prod(0).flatten()


def turned(points: Tensor, mean: Tensor) -> Tensor:
    """Turn points about the first axis to points about a mean direction."""
    frame = torch.linalg.qr(torch.cat([mean[:, None], torch.eye(len(mean))[:, 1:]], 1)).Q
    frame = frame * torch.sign(frame[:, :1].T @ mean)  # the sign of the first column
    return points @ frame.T


def circle(mean: Tensor) -> Grid:
    a, w = angles(2000)
    return turned(torch.stack([a.cos(), a.sin()], -1), mean), w


def sphere(mean: Tensor) -> Grid:
    (r, a), w = outer(legendre(0, math.pi, 80), angles(80))
    x = torch.stack([r.cos(), r.sin() * a.cos(), r.sin() * a.sin()], -1)
    return turned(x, mean) if mean.shape == (3,) else x, w * r.sin()


def three_sphere(mean: Tensor) -> Grid:
    (r, s, a), w = outer(legendre(0, math.pi, 30), legendre(0, math.pi, 24), angles(30))
    ring = r.sin() * s.sin()
    x = torch.stack([r.cos(), r.sin() * s.cos(), ring * a.cos(), ring * a.sin()], -1)
    return turned(x, mean), w * r.sin().square() * s.sin()


def half_turns(mean: Tensor) -> Grid:
    """Unit quaternions, one of each pair q and -q, at half their angles from the mean."""
    (r, s, a), w = outer(legendre(0, math.pi / 2, 30), legendre(0, math.pi, 24), angles(30))
    ring = r.sin() * s.sin()
    x = torch.stack([r.cos(), r.sin() * s.cos(), ring * a.cos(), ring * a.sin()], -1)
    return turned(x, mean), 8 * w * r.sin().square() * s.sin()


def rotations(mean: Tensor) -> Grid:
    """Rotations by angles a about axes, from the mean; Haar's volume has 2 - 2 cos a."""
    (r, s, a), w = outer(legendre(0, math.pi, 30), legendre(0, math.pi, 24), angles(30))
    x, y, z = (r * part for part in (s.sin() * a.cos(), s.sin() * a.sin(), s.cos()))
    zero = torch.zeros_like(x)
    turn = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    u, _, v = torch.linalg.svd(mean) if mean.dim() == 2 else torch.linalg.svd(torch.eye(3))
    return u @ v @ torch.linalg.matrix_exp(turn), w * (2 - 2 * r.cos()) * s.sin()


def axis_and_angle(mean: Tensor) -> Grid:
    """The product of S^2, its metric times 2, and the line, its metric times 9."""
    (r, a, t), w = outer(legendre(0, math.pi, 40), angles(40), legendre(-7, 7, 60))
    x = torch.stack([r.cos(), r.sin() * a.cos(), r.sin() * a.sin(), t], -1)
    return x, w * r.sin() * 2 * 3


def beside() -> Base:
    space = Product((Sphere(), 3), (Euclidean(), 1), weights=(2.0, 9.0))
    laws = VonMisesFisher(3, concentration=4.0), WrappedNormal(Euclidean(), 1)
    return Joint(*laws, manifold=space)


def on_torus(
    name: str, build: Callable[[], Base], period: float = TURN, *missing: str
) -> ManifoldLaw:
    def grid(mean: Tensor) -> Grid:
        (a, b), w = outer(angles(100, period), angles(100, period))
        return torch.stack([a, b], -1), w

    def lift(x: Tensor) -> Tensor:
        return torch.cat([(x * TURN / period).cos(), (x * TURN / period).sin()], -1)

    return ManifoldLaw(name, build, grid, missing, lift)


def plane(mean: Tensor) -> Grid:
    axis = legendre(-7, 7, 90)
    (a, b), w = outer(axis, axis)
    return torch.stack([a, b], -1) + mean, w


def hyperbolic(mean: Tensor) -> Grid:
    """Points of the unit disc, with the volume 4 / (1 - |x|^2)^2; the mean is near its centre."""
    (r, a), w = outer(legendre(0, 7, 150), angles(100))
    radius = (r / 2).tanh()
    return torch.stack([radius * a.cos(), radius * a.sin()], -1), w * r.sinh()


def hyperboloid(mean: Tensor) -> Grid:
    """Points of curvature -2, whose volume is half that of curvature -1."""
    (r, a), w = outer(legendre(0, 9, 150), angles(100))
    x = torch.stack([r.cosh(), r.sinh() * a.cos(), r.sinh() * a.sin()], -1) / math.sqrt(2)
    return x, w * r.sinh() / 2


def covariances(mean: Tensor) -> Grid:
    """Products of factors ((e^p, 0), (q, e^s)) with their transposes.

    The affine-invariant volume is sqrt(2) det^(-3/2) times that of the three entries.
    """
    (p, s, q), w = outer(legendre(-1.8, 1.8, 24), legendre(-1.8, 1.8, 24), legendre(-3, 3, 36))
    stretch = (1 + p.exp() + s.exp()) / 3  # wide where the rest is
    q = q * stretch
    factor = torch.zeros(len(p), 2, 2)
    factor[:, 0, 0], factor[:, 1, 1], factor[:, 1, 0] = p.exp(), s.exp(), q
    jacobian = 4 * (3 * p + 2 * s).exp() * stretch
    return factor @ factor.mT, w * math.sqrt(2) * jacobian * (-3 * (p + s)).exp()


def caps() -> Base:
    return Components(
        [VonMisesFisher(3, concentration=6.0), ProjectedNormal(3), ManifoldUniform(Sphere(), 3)]
    )


PAIR = torch.tensor([0.4, 0.9], dtype=torch.float64)
POINTS = torch.tensor([[1.0, 0.2, 0.0], [0.0, -1.0, 0.5], [0.3, 0.3, 0.3]], dtype=torch.float64)
TURNS = torch.tensor([[0.1, 3.0], [2.0, 6.2], [5.0, 1.0]], dtype=torch.float64)
EACH = torch.tensor([3.0, 12.0, 0.5], dtype=torch.float64)

LAWS = [
    ManifoldLaw("uniform on S^2", lambda: ManifoldUniform(Sphere(), 3), sphere),
    on_torus("uniform on T^2", lambda: ManifoldUniform(Torus(1.0), 2), 1.0),
    ManifoldLaw("von Mises-Fisher on S^1", lambda: VonMisesFisher(2, concentration=3.0), circle),
    ManifoldLaw("von Mises-Fisher on S^2", lambda: VonMisesFisher(3, concentration=9.0), sphere),
    ManifoldLaw("von Mises-Fisher on S^3", lambda: VonMisesFisher(4), three_sphere),
    on_torus("von Mises", lambda: VonMises(2, mean=PAIR, concentration=4 * PAIR)),
    on_torus("von Mises, period 1", lambda: VonMises(2, period=1.0), 1.0),
    ManifoldLaw("projected normal on S^1", lambda: ProjectedNormal(2), circle),
    ManifoldLaw(
        "projected normal on S^2", lambda: ProjectedNormal(3, mean=2.0 * POINTS[0]), sphere
    ),
    ManifoldLaw(
        "projected normal on S^3", lambda: ProjectedNormal(4, mean=torch.ones(4)), three_sphere
    ),
    ManifoldLaw("wrapped on R^2", lambda: WrappedNormal(Euclidean(), 2, scale=PAIR), plane),
    ManifoldLaw("wrapped on S^1", lambda: WrappedNormal(Sphere(), 2), circle),
    ManifoldLaw("wrapped on S^2", lambda: WrappedNormal(Sphere(), 3, scale=0.5), sphere),
    ManifoldLaw(
        "wrapped on S^2, oval", lambda: WrappedNormal(Sphere(), 3, scale=0.5 * PAIR), sphere
    ),
    ManifoldLaw("wrapped on S^2, broad", lambda: WrappedNormal(Sphere(), 3, scale=2.0), sphere),
    ManifoldLaw("wrapped on S^3, broad", lambda: WrappedNormal(Sphere(), 4), three_sphere),
    on_torus("wrapped on T^2", lambda: WrappedNormal(Torus(), 2, scale=PAIR)),
    on_torus("wrapped on T^2, broad", lambda: WrappedNormal(Torus(), 2, scale=2.7)),
    on_torus("wrapped on T^2, period 1", lambda: WrappedNormal(Torus(1.0), 2, scale=0.3), 1.0),
    ManifoldLaw("wrapped on H^2", lambda: WrappedNormal(PoincareBall(), 2), hyperbolic),
    ManifoldLaw(
        "wrapped on H^2, oval", lambda: WrappedNormal(PoincareBall(), 2, scale=PAIR), hyperbolic
    ),
    ManifoldLaw(
        "wrapped on a hyperboloid", lambda: WrappedNormal(Lorentz(-2.0), 3, scale=0.8), hyperboloid
    ),
    ManifoldLaw(
        "wrapped on SPD",
        lambda: WrappedNormal(AffineInvariantSPD(), (2, 2), scale=0.5),
        covariances,
    ),
    ManifoldLaw("uniform on SO(3)", lambda: ManifoldUniform(Rotations(), (3, 3)), rotations),
    ManifoldLaw(
        "wrapped on SO(3)", lambda: WrappedNormal(Rotations(), (3, 3), scale=0.7), rotations
    ),
    ManifoldLaw(
        "wrapped on SO(3), broad", lambda: WrappedNormal(Rotations(), (3, 3), scale=2.0), rotations
    ),
    ManifoldLaw(
        "wrapped on quaternions",
        lambda: WrappedNormal(Quaternions(), 4, scale=1.2),
        half_turns,
        lift=lambda q: (q[:, :, None] * q[:, None]).flatten(1),  # the same for q and -q
    ),
    ManifoldLaw("joint, of weights", beside, axis_and_angle),
    ManifoldLaw("components", caps, sphere, ("logits",)),
    ManifoldLaw(
        "mixture of caps", lambda: VonMisesFisherMixture(POINTS, EACH), sphere, ("logits",)
    ),
    ManifoldLaw(
        "mixture of one width", lambda: VonMisesFisherMixture(POINTS, 9.0), sphere, ("logits",)
    ),
    on_torus("mixture on T^2", lambda: VonMisesMixture(TURNS, EACH[:, None]), TURN, "logits"),
]
