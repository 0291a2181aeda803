"""What motions on the sphere are compared with, and by what; see `experiments/lasa_sphere.py`."""

import math
import statistics
from itertools import product

import ot
import torch
from torch import Generator, Tensor, nn

from cflow import Flow
from cflow.manifold import Sphere
from cflow.matching import GeodesicCost
from experiments.lasa import warped

__all__ = [
    "SPACE",
    "WIDTHS",
    "apart",
    "blurred",
    "drawn",
    "mean",
    "measured",
    "wasserstein",
    "widths",
    "wrapped_normals",
]

SPACE = Sphere(steps="exponential")
WIDTHS = (0.0, 0.01, 0.02, 0.04, 0.06, 0.08, 0.12)  # radians, by which laws may be widened
WINDOWS = (0, 2, 5, 10)  # phases over which covariances may be smoothed


def blurred(x: Tensor, size: Tensor | float, generator: Generator) -> Tensor:
    """Move points by normal noise of a size in radians."""
    noise = torch.randn(x.shape, generator=generator)
    return SPACE.projx(SPACE.expmap(x, size * SPACE.proju(x, noise)))


def mean(x: Tensor) -> Tensor:
    """Return the mean of demonstrations at each phase, `(shapes, points, 3)`, by a few steps."""
    centre = SPACE.projx(x.mean(1))
    for _ in range(5):
        centre = SPACE.expmap(centre, SPACE.logmap(centre[:, None].expand_as(x), x).mean(1))
    return SPACE.projx(centre)


def widths(train: Tensor, chosen: Tensor, blur: float) -> tuple[int, float]:
    """Return the window and the extra width of wrapped normals that are best for one motion."""
    likely = lambda choice: wrapped_normals(train, chosen, *choice, blur=blur).mean().item()
    return max(product(WINDOWS, WIDTHS), key=likely)


def wrapped_normals(x: Tensor, at: Tensor, window: int, extra: float, *, blur: float) -> Tensor:
    """Return log densities by a wrapped normal law at each phase, `(shapes, points)`.

    Args:
        x: Demonstrations, `(shapes, n, points, 3)`.
        at: The points, `(shapes, points, 3)`.
        window: See below.
        extra: See below.
        blur: By how much points are blurred, radians.

    Covariances are averaged over the phases up to `window` away, and widened by `extra` radians.
    """
    centre = mean(x)
    apart = SPACE.logmap(centre[:, None].expand_as(x), x)
    spread = (apart[..., :, None] * apart[..., None, :]).sum(1) / (x.shape[1] - 1)
    rows = nn.functional.pad(spread.movedim(1, -1).flatten(1, 2), (window, window), "replicate")
    smooth = nn.functional.avg_pool1d(rows, 2 * window + 1, 1).unflatten(1, (3, 3)).movedim(-1, 1)
    axes = SPACE.frame(centre)[0]  # orthonormal, of the tangent planes; it jumps at the equator
    covariance = axes @ smooth @ axes.mT + (blur**2 + extra**2) * torch.eye(2)
    u = SPACE.logmap(centre, at)
    y = (axes @ u[..., None]).squeeze(-1)
    law = torch.distributions.MultivariateNormal(torch.zeros(2), covariance)
    return law.log_prob(y) - SPACE.log_det_exp(centre, u)


def measured(x: Tensor, truth: Tensor) -> dict[str, float]:
    """Compare motions `(n, shapes, points, 3)` with one truth for each shape, in degrees."""
    distance = SPACE.dist(x, truth.expand_as(x)).mean()
    far = SPACE.dist(x[..., :, None, :], truth[..., None, :, :])
    return {
        "distance": math.degrees(distance.item()),
        "dtw": math.degrees(warped(far).mean().item()),
    }


def drawn(context: Tensor, samples: int, generator: Generator, flow: Flow) -> Tensor:
    """Return samples of a flow for each condition, `(samples, conditions, 3)`."""
    return flow.sample((samples,), context, generator=generator)


def apart(x: Tensor, fine: Tensor) -> dict[str, float]:
    """Compare samples with those of a fine solve: distance in degrees, and off the sphere."""
    off = (torch.linalg.vector_norm(x, dim=-1) - 1).abs().max().item()
    return {"w2": wasserstein(x, fine), "off": off}


def wasserstein(x: Tensor, y: Tensor) -> float:
    """Return the 2-Wasserstein distance of samples `(n, conditions, 3)`, mean over conditions."""
    cost = GeodesicCost(SPACE)
    squares = [
        float(ot.emd2([], [], cost(a, b).double().numpy()))  # type: ignore[arg-type]
        for a, b in zip(x.unbind(1), y.unbind(1), strict=True)
    ]
    return math.degrees(statistics.mean(map(math.sqrt, squares)))
