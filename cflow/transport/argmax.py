"""Argmax dequantisation: tokens as the places where vectors of real numbers are largest.

    push: x = argmax_k v_k;    pull: v ~ q(. | x), all of whose mass has its largest entry at x

With K values and u any noise on R^K, its entry u_x stays and the others are bent below it,

    v_x = u_x,    v_k = u_x - softplus(u_x - u_k),    log q(v | x) = log q(u | x) - sum_k log s_k,

with s_k = sigmoid(u_x - u_k) for k != x. With p(v) the density of the continuous part,

    E_q[log p(v) - log q(v | x)] <= log P(x),

an equality where q is the law of v given x under p.

Source: Hoogeboom et al. (2021), Argmax flows and multinomial diffusion, arXiv 2102.05379,
section 3.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Generator, Tensor
from torch.nn import functional

from cflow.errors import DomainError, expect_tokens, expect_trailing
from cflow.state import State
from cflow.transport.transport import Chain, Shape, Stochastic, Transport

__all__ = ["ArgmaxDequantize"]


class ArgmaxDequantize(Stochastic):
    """Carry tokens 0 .. vocabulary-1 to vectors and back; the data end of a flow of tokens.

    A base of shape `(*event, vocabulary)` gives a flow of tokens `(*event)`, whose likelihood is a
    bound. The noise is standard normal numbers pushed through `noise_model`, which is trained along
    with the rest; its push should be the cheap direction.

    Args:
        vocabulary: How many values a token has.
        noise_model: A transport of points `(*event, vocabulary)` whose context is what the encoder
            makes of the tokens; its likelihood must be exact. None for normal noise as it is.
        encoder: Called as `encoder(units, context)` with the tokens as unit vectors, `(*batch,
            *event, vocabulary)`, and the flow's own context; returns the noise model's context. By
            default the unit vectors of a point, end to end.
        event_dim: Axes of one point of tokens: 1 for sequences, 2 for grids.

    Raises:
        DomainError: Fewer than two values, or a noise model without an exact likelihood; on use,
            tokens that are no integers or out of range.
        ShapeError: On use, points that do not end in the vocabulary.

    References:
        Hoogeboom et al. (2021), arXiv 2102.05379.

    Example:
        >>> from cflow import Flow
        >>> from cflow.base import Gaussian
        >>> from cflow.nets import MLP
        >>> from cflow.transport import AffineMap, Elementwise
        >>> noise = Elementwise(AffineMap(), (5, 3), conditioner=MLP(15, 30))
        >>> flow = Flow(Gaussian((5, 3)), Chain(ArgmaxDequantize(3, noise)))
        >>> flow.event_shape, flow.log_prob(torch.tensor([[0, 2, 1, 1, 0]])).shape
        ((5,), torch.Size([1]))
    """

    def __init__(
        self,
        vocabulary: int,
        noise_model: Transport | None = None,
        *,
        encoder: Callable[[Tensor, Tensor | None], Tensor] | None = None,
        event_dim: int = 1,
    ) -> None:
        super().__init__(out_shape=self._shape)
        if vocabulary < 2 or event_dim < 0:
            raise DomainError(
                "ArgmaxDequantize: vocabulary must be at least 2 and event_dim 0 or more, got "
                f"vocabulary={vocabulary} and event_dim={event_dim}"
            )
        model = Chain() if noise_model is None else noise_model
        if model.likelihood != "exact":
            raise DomainError(
                "ArgmaxDequantize: the density of the noise must be exact, got a noise model "
                f"({type(model).__name__}) with likelihood {model.likelihood!r}"
            )
        self.vocabulary = vocabulary
        self.noise_model = model
        self.encoder = encoder
        self.event_dim = event_dim
        self.unit: Tensor
        self.register_buffer("unit", torch.tensor(1.0))  # follows .to(dtype), for integer input

    def noise(self, y: Tensor, generator: Generator | None) -> Tensor:
        shape = (*y.shape, self.vocabulary)
        return torch.randn(shape, dtype=self.unit.dtype, device=y.device, generator=generator)

    def _push(self, x: Tensor, context: Tensor | None) -> Tensor:
        expect_trailing("ArgmaxDequantize.push", "x", x, (self.vocabulary,))
        return x.argmax(-1)

    def _pull(
        self, y: Tensor, noise: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        expect_tokens("ArgmaxDequantize.pull", y, (), self.vocabulary)
        own = y[..., None] == torch.arange(self.vocabulary, device=y.device)
        units = own.to(noise.dtype)
        if self.encoder is None:
            steered = units.flatten(units.dim() - self.event_dim - 1)
        else:
            steered = self.encoder(units, context)
        zeros = torch.zeros_like(noise, dtype=torch.promote_types(noise.dtype, torch.float32))
        start = State(noise, ladj=self._total(zeros) if tracked else None)
        state = self.noise_model.push(start, steered)
        v, slopes = _thresholded(state.x, own, y)
        if not tracked:
            return v, None
        ladj = cast(Tensor, state.ladj)  # of the way from normal numbers to the noise
        wide = noise.to(ladj.dtype)
        surplus = 0.5 * (wide.square() + math.log(2 * math.pi)) + slopes.to(ladj.dtype)
        return v, ladj + self._total(surplus)

    def _shape(self, shape: Shape) -> Shape:
        if len(shape) != self.event_dim + 1 or shape[-1] != self.vocabulary:
            raise DomainError(
                f"ArgmaxDequantize: the base side needs points of {self.event_dim} axes and one of "
                f"{self.vocabulary} numbers for each token, got {tuple(shape)}; event_dim says how "
                "many axes a point of tokens has"
            )
        return shape[:-1]

    def _total(self, entries: Tensor) -> Tensor:
        return entries.flatten(entries.dim() - self.event_dim - 1).sum(-1)


def _thresholded(u: Tensor, own: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Bend all entries below the token's own; return them with the logarithms of their slopes."""
    top = u.gather(-1, y[..., None].long())
    below = top - u
    # softplus(-100) is zero next to 1: without a gap of one rounding two entries were the largest
    gap = top.abs() * torch.finfo(u.dtype).eps + torch.finfo(u.dtype).tiny
    v = torch.where(own, u, top - torch.maximum(functional.softplus(below), gap))
    slopes = functional.logsigmoid(below.to(torch.promote_types(u.dtype, torch.float32)))
    return v, torch.where(own, 0.0, slopes)
