"""Moebius transformations: of the circle, mixed with weights, and of the sphere.

    h(x) = (1 - |w|^2) / |x - w|^2 (x - w) - w,    |w| < 1

It maps the unit sphere to itself, keeps all angles, stretches every length by the same factor
(1 - |w|^2) / |x - w|^2, and its inverse has -w in place of w. On the circle, with w = r e^(ia),
that factor is the Poisson kernel, and its integral is the map of the angle:

    f(x) = x + 2 arctan(r sin(x - a) / (1 - r cos(x - a))) + constant.

Convex mixtures of such maps increase and go round once; their inverse is a search.
Source: Rezende et al. (2020), Normalizing flows on tori and spheres, arXiv 2002.02428, section 2.1
and appendix; Kato and McCullagh (2020), Some properties of a Cauchy family on the sphere derived
from the Mobius transformations, arXiv 1510.07679.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cflow.errors import DomainError, expect_trailing
from cflow.manifold import Sphere, expect_on
from cflow.transport.circular import wrapped
from cflow.transport.inverse_root import root
from cflow.transport.steered import steered
from cflow.transport.transport import Layer
from cflow.transport.univariate import UnivariateMap, in_full_precision

__all__ = ["MoebiusMap", "MoebiusSphere"]


@dataclass(frozen=True)
class MoebiusMap(UnivariateMap):
    """Bend a circle by a convex mixture of Moebius transformations, then turn it.

    Each unit takes three parameters, its weight, radius and angle, and the turn one more. Fixed
    angles, spread over half the circle, are added, so that all parameters at zero mean the identity
    and yet tell the units apart. The slope lies between (1 - r) / (1 + r) and its inverse for the
    largest radius r. Pull is a search.

    Attributes:
        units: How many transformations are mixed.
        radius: Largest |w| of each, in (0, 1).
        period: Length of the way round.

    Raises:
        DomainError: No unit, or a radius or period outside its range.

    Example:
        >>> bend = MoebiusMap(units=2)
        >>> theta = torch.tensor([0.5, 0.0, 1.0, -0.5, 0.3, 2.0, 1.0])
        >>> y, slope = bend.push(torch.tensor(0.3), theta)
        >>> bend.pull(y, theta)[0]
        tensor(0.3000)
    """

    units: int = 8
    radius: float = 0.99
    period: float = 2 * math.pi

    def __post_init__(self) -> None:
        if self.units < 1 or not 0 < self.period < math.inf:
            raise DomainError(
                f"MoebiusMap: units and period must be positive, got {self.units}, {self.period}"
            )
        _expect_inside("MoebiusMap", self.radius)

    @property
    def parameters(self) -> int:
        return 3 * self.units + 1

    def push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return in_full_precision(self._push, x, theta)

    def pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return in_full_precision(self._pull, y, theta)

    def _push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        y, slope = self._bend(2 * math.pi / self.period * x, theta[..., :-1])
        return self.period / (2 * math.pi) * wrapped(y + theta[..., -1], 2 * math.pi), slope

    def _pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        y = wrapped(2 * math.pi / self.period * y - theta[..., -1], 2 * math.pi)
        given = theta[..., :-1].expand(*y.shape, -1)
        x, slope = root("MoebiusMap.pull", self._bend, y, given, low=0.0, high=2 * math.pi)
        return self.period / (2 * math.pi) * wrapped(x, 2 * math.pi), slope

    def _bend(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mixture, which maps 0 to 0 and 2 pi to 2 pi, and its log-slope."""
        logits, raw, turned = theta.unflatten(-1, (3, self.units)).unbind(-2)
        spread = torch.arange(self.units, dtype=theta.dtype, device=theta.device)
        r, angle = self.radius * torch.tanh(raw), turned + math.pi / self.units * spread
        weight = logits.softmax(-1)
        here, start = (_polar(r, a - angle) for a in (x[..., None], 0.0))
        bent = torch.atan(here[1] / here[0]) - torch.atan(start[1] / start[0])
        # 1 - 2 r cos + r^2 in a form that does not cancel near the pole
        factor = (1 - r * r) / (here[0] * here[0] + here[1] * here[1])
        return x + 2 * (weight * bent).sum(-1), (weight * factor).sum(-1).log()


class MoebiusSphere(Layer):
    """Apply a Moebius transformation to unit vectors; it piles them up at -w/|w| of the centre w.

    Its log-determinant, between areas of the sphere, is n log((1 - |w|^2) / |x - w|^2) on S^n.
    Together with `Rotation(features, bias=False)` it makes the whole Moebius group. Parameters at
    zero are the identity.

    Args:
        features: Length n + 1 of a vector, at least 2.
        conditioner: A module called as `net(context)` that returns `(*batch, features)`; added to
            the learned parameters of the centre.
        radius: Largest |w|, in (0, 1).

    Raises:
        DomainError: An option outside its range, points off the sphere, or a missing context.
        ShapeError: Points, or what the conditioner returns, have another length.

    References:
        Kato and McCullagh (2020), arXiv 1510.07679; Rezende et al. (2020), arXiv 2002.02428.

    Example:
        >>> from cflow.state import tracked
        >>> layer = MoebiusSphere(3)
        >>> _ = nn.init.constant_(layer.centre, 0.5)
        >>> x = torch.tensor([[0.0, 0.6, 0.8]])
        >>> back = layer.pull(layer.push(tracked(x)))
        >>> torch.allclose(back.x, x, atol=1e-5)
        True
    """

    def __init__(
        self,
        features: int,
        *,
        conditioner: Callable[[Tensor], Tensor] | None = None,
        radius: float = 0.99,
    ) -> None:
        super().__init__(event_dim=1)
        if features < 2:
            raise DomainError(f"MoebiusSphere: vectors have 2 features at least, got {features}")
        _expect_inside("MoebiusSphere", radius)
        self.radius = radius
        self.conditioner = conditioner
        self.centre = nn.Parameter(torch.zeros(features))

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        return self._move("push", x, self._centre("push", x, context), tracked=tracked)

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        return self._move("pull", y, -self._centre("pull", y, context), tracked=tracked)

    def _move(
        self, method: str, x: Tensor, centre: Tensor, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        where = f"MoebiusSphere.{method}"
        expect_trailing(where, "x", x, self.centre.shape)
        expect_on(where, "x", Sphere(), x)
        unit = Sphere().projx(x.to(centre.dtype))
        apart = unit - centre
        inside = 1 - (centre * centre).sum(-1, keepdim=True)
        factor = inside / (apart * apart).sum(-1, keepdim=True)
        y = Sphere().projx(factor * apart - centre)  # rounding shall not add up along a chain
        ladj = (x.shape[-1] - 1) * factor[..., 0].log() if tracked else None
        return y.to(x.dtype), ladj

    def _centre(self, method: str, x: Tensor, context: Tensor | None) -> Tensor:
        """Return w, inside the ball of the largest radius, in float32 at least."""
        raw = steered(f"MoebiusSphere.{method}", self.centre, self.conditioner, context)
        raw = raw.to(torch.promote_types(torch.promote_types(x.dtype, raw.dtype), torch.float32))
        return self.radius * raw / (1 + (raw * raw).sum(-1, keepdim=True)).sqrt()


def _polar(r: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return the real and the imaginary part of 1 - r exp(-i angle)."""
    return 1 - r * torch.cos(angle), r * torch.sin(angle)


def _expect_inside(where: str, radius: float) -> None:
    if not 0 < radius < 1:
        raise DomainError(f"{where}: radius must lie in (0, 1), got {radius}")
