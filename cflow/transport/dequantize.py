"""Dequantisation: counts and grey levels as a stochastic layer of the flow.

    pull: u = (x + noise) / levels, noise ~ q(. | x) on [0, 1);    push: x = floor(levels u)

With p(u) the density of the continuous part and D the size of an event,

    E_q[log p(u) - D log(levels) - log q(noise | x)] <= log P(x),

P(x) being the probability of the integers themselves. Uniform noise has log q = 0. A noise model
that learns where the density of each cell lies closes the gap, wholly so if q is the law of the
noise given x under p.

Source: Theis et al. (2016), A note on the evaluation of generative models, arXiv 1511.01844, 3.1;
Ho et al. (2019), Flow++, arXiv 1902.00275, section 3.1 and equation 12.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError
from cflow.state import State
from cflow.transport.elementwise import Logit
from cflow.transport.transport import Chain, Inverse, Stochastic, Transport

__all__ = ["Dequantize", "VariationalDequantize"]


class Dequantize(Stochastic):
    """Carry integers 0 .. levels-1 to the unit interval and back; the data end of an image flow.

    The likelihood of a flow that ends here is a bound, in nats per point of integer data.

    Args:
        levels: Number of distinct values.

    Raises:
        DomainError: Fewer than two levels.

    Example:
        >>> layer = Dequantize(17)
        >>> x = torch.tensor([[0, 16, 3]])
        >>> bool((layer.push(layer.pull(State(x))).x == x).all())
        True
    """

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        self.levels = _expect_levels("Dequantize", levels)
        self.unit: Tensor
        self.register_buffer("unit", torch.tensor(1.0))  # follows .to(dtype), for integer input

    def noise(self, y: Tensor, generator: Generator | None) -> Tensor:
        dtype = y.dtype if y.is_floating_point() else self.unit.dtype
        return torch.rand(y.shape, dtype=dtype, device=y.device, generator=generator)

    def _push(self, x: Tensor, context: Tensor | None) -> Tensor:
        return _to_integers(x, self.levels)

    def _pull(
        self, y: Tensor, noise: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        u = _to_unit(y, noise, self.levels)
        return u, torch.full_like(u, -math.log(self.levels)) if tracked else None


class VariationalDequantize(Stochastic):
    """Dequantise with noise from a conditional flow, which is trained along with the rest.

    Standard normal numbers are pushed through `noise_model`, steered by the integers, and squashed
    to (0, 1). Every pull pushes the noise model once, so its push should be the cheap direction: a
    plain layer, `fast="sample"`. With an empty `Chain()` the noise is a squashed normal and knows
    nothing of the integers.

    `flow.initialize` does not reach layers inside the noise model: use such as need no statistics.

    Args:
        noise_model: A transport of points of the event's shape, whose context is what the encoder
            makes of the integers; its likelihood must be exact.
        levels: Number of distinct values.
        encoder: Called as `encoder(image, context)` with the integers scaled to (-1, 1),
            `(*batch, *event)`, and the flow's own context; returns the noise model's context. By
            default the image itself, as it is.
        event_dim: Axes of one point: 1 for vectors, 3 for images.

    Raises:
        DomainError: Fewer than two levels, or a noise model without an exact likelihood.

    References:
        Ho et al. (2019), Flow++, arXiv 1902.00275, section 3.1.

    Example:
        >>> from cflow import Flow
        >>> from cflow.base import Gaussian
        >>> from cflow.nets import MLP
        >>> from cflow.transport import CouplingLayer
        >>> noise = CouplingLayer([True, False], MLP(1, 2, context=2))
        >>> layer = VariationalDequantize(noise, levels=4)
        >>> flow = Flow(Gaussian(2), Chain(Inverse(Logit(0.05)), layer))
        >>> flow.log_prob(torch.tensor([[0, 3], [2, 1]])).shape
        torch.Size([2])
    """

    def __init__(
        self,
        noise_model: Transport,
        levels: int = 256,
        *,
        encoder: Callable[[Tensor, Tensor | None], Tensor] | None = None,
        event_dim: int = 1,
    ) -> None:
        super().__init__()
        self.levels = _expect_levels("VariationalDequantize", levels)
        if noise_model.likelihood != "exact":
            raise DomainError(
                "VariationalDequantize: the density of the noise must be exact, got a noise model "
                f"({type(noise_model).__name__}) with likelihood {noise_model.likelihood!r}"
            )
        self.noise_model = Chain(noise_model, Inverse(Logit(0.0)))
        self.encoder = encoder
        self.event_dim = event_dim
        self.unit: Tensor
        self.register_buffer("unit", torch.tensor(1.0))

    def noise(self, y: Tensor, generator: Generator | None) -> Tensor:
        dtype = y.dtype if y.is_floating_point() else self.unit.dtype
        return torch.randn(y.shape, dtype=dtype, device=y.device, generator=generator)

    def _push(self, x: Tensor, context: Tensor | None) -> Tensor:
        return _to_integers(x, self.levels)

    def _pull(
        self, y: Tensor, noise: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        image = (2 * y.to(noise.dtype) + 1) / self.levels - 1
        steered = image if self.encoder is None else self.encoder(image, context)
        zeros = torch.zeros_like(noise, dtype=torch.promote_types(noise.dtype, torch.float32))
        start = State(noise, ladj=self._total(zeros) if tracked else None)
        state = self.noise_model.push(start, steered)
        u = _to_unit(y, state.x, self.levels)
        if not tracked:
            return u, None
        ladj = cast(Tensor, state.ladj)  # of the way from normal numbers to the noise
        entries = -0.5 * (noise.to(ladj.dtype).square() + math.log(2 * math.pi))
        log_q = self._total(entries) - ladj
        return u, -self._total(torch.full_like(entries, math.log(self.levels))) - log_q

    def _total(self, entries: Tensor) -> Tensor:
        start = entries.dim() - self.event_dim
        return entries.flatten(start).sum(-1) if self.event_dim else entries


def _expect_levels(where: str, levels: int) -> int:
    if levels < 2:
        raise DomainError(f"{where}: levels must be at least 2, got {levels}")
    return levels


def _to_integers(u: Tensor, levels: int) -> Tensor:
    return torch.floor(u * levels).clamp(0, levels - 1)


def _to_unit(y: Tensor, noise: Tensor, levels: int) -> Tensor:
    """Return (y + noise) / levels, kept below 1, where rounding would carry the highest level."""
    u = (y.to(noise.dtype) + noise) / levels
    return u.clamp(max=1 - torch.finfo(u.dtype).eps / 2)
