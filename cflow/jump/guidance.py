"""Guidance of jump processes without a classifier: further towards a condition than was trained.

    posterior:  p(x1 | x_t, c)^s p(x1 | x_t)^(1 - s), normalised
    rates:      u_c(x -> y)^s u_0(x -> y)^(1 - s)

At scale s = 1 both are the model given its condition, at s = 0 the model without one. A guided
model is one like any other: samplers take it, and so does the bound, that of the law of its own
samples. For guidance by a predictor see `predictor.py`.
Source: Nisonoff et al. (2024), Unlocking guidance for discrete state-space diffusion and flow
models, arXiv 2406.01572; Ho and Salimans (2022), arXiv 2207.12598.
"""

import torch
from torch import Tensor

from cflow.field.guidance import expect_scale
from cflow.field.null import Null, null_like, null_tensor, with_and_without
from cflow.jump.rates import Posterior, Rates
from cflow.typing import Data, Times

__all__ = ["ClassifierFreePosterior", "GuidedRates"]


class ClassifierFreePosterior(Posterior):
    """Guide a posterior that knows its condition away from itself without one.

        log p = s log p(x1 | x_t, c) + (1 - s) log p(x1 | x_t) + const

    A posterior like any other, so that each sampler of posteriors takes it. Both come from one
    evaluation of twice the batch, where the null context has the shape of the context. Scale 1 is
    the posterior itself and scale 0 that at the null context; either costs one evaluation.

    Args:
        posterior: Trained with its context hidden now and then, see `ContextDropout`.
        scale: The s.
        null: The context that says nothing, for one sample: a class index, a number for each entry
            of a vector, a vector, a sequence; None to ask with no context at all.

    Raises:
        DomainError: The scale is negative; when called without a context.
        ShapeError: When called with a context that the null one does not fit.

    Example:
        >>> from cflow.base import MaskTokens
        >>> from cflow.jump import NetworkPosterior, TransformerRates
        >>> base = MaskTokens(6, 4)
        >>> net = TransformerRates(6, 5, 4, classes=3, width=16, layers=1, heads=2)
        >>> guided = ClassifierFreePosterior(NetworkPosterior(net, base), 2.0, null=3)
        >>> label = torch.tensor([0, 2])
        >>> guided.logits(torch.rand(2), base.sample((2,)), label).shape
        torch.Size([2, 6, 4])
    """

    def __init__(self, posterior: Posterior, scale: float, *, null: Null) -> None:
        assert posterior.path is not None  # of every posterior
        super().__init__(
            posterior.vocabulary,
            posterior.path,
            masked=posterior.masked,
            absorbing=posterior.absorbing,
        )
        self.posterior = posterior
        self.scale = expect_scale("ClassifierFreePosterior", scale)
        self.null: Tensor | None
        self.register_buffer("null", null_tensor(null), persistent=False)

    def logits(self, t: Times, x: Data, context: Tensor | None = None) -> Tensor:
        where, ask = "ClassifierFreePosterior", self.posterior.logits
        if self.scale == 1:
            return ask(t, x, context)
        null = null_like(where, self.null, t, context)
        if self.scale == 0:
            return ask(t, x, null)
        return _between(*with_and_without(ask, t, x, context, null), self.scale)


class GuidedRates(Rates):
    """Guide rates that know their condition away from themselves without one.

        u(x -> y) = u_c(x -> y)^s u_0(x -> y)^(1 - s)

    For rates of any kind; a jump that either never makes is never made. Cost and null context are
    as for `ClassifierFreePosterior`, from which this differs also along a mixture path: how often
    tokens jump is guided too.

    Args:
        rates: Trained with their context hidden now and then.
        scale: The s.
        null: The context that says nothing, for one sample; None to ask with no context at all.

    Raises:
        DomainError: The scale is negative; when called without a context.
        ShapeError: When called with a context that the null one does not fit.

    References:
        Nisonoff et al. (2024), arXiv 2406.01572.

    Example:
        >>> from cflow.jump import DirectRates
        >>> told = lambda t, x, c: (0.0 if c is None else c[..., None, None]) * torch.ones(1, 1, 2)
        >>> guided = GuidedRates(DirectRates(told, 2), 3.0, null=None)
        >>> t, x, c = torch.zeros(1), torch.tensor([[0]]), torch.tensor([2.0]).log()
        >>> [round(u, 4) for u in guided(t, x, c).flatten().tolist()]  # 2^3 1^-2
        [0.0, 8.0]
    """

    def __init__(self, rates: Rates, scale: float, *, null: Null) -> None:
        super().__init__(rates.states, rates.path, clock=rates.clock)
        self.rates = rates
        self.scale = expect_scale("GuidedRates", scale)
        self.null: Tensor | None
        self.register_buffer("null", null_tensor(null), persistent=False)

    def forward(self, t: Times, x: Data, context: Tensor | None = None) -> Tensor:
        if self.scale == 1:
            return self.rates(t, x, context)
        null = null_like("GuidedRates", self.null, t, context)
        if self.scale == 0:
            return self.rates(t, x, null)
        u, weak = with_and_without(self.rates, t, x, context, null)
        return _between(u.log(), weak.log(), self.scale).exp()


def _between(given: Tensor, weak: Tensor, scale: float) -> Tensor:
    """Return weak + scale (given - weak), and minus infinity where either is."""
    wide = torch.promote_types(given.dtype, torch.float32)
    given, weak = given.to(wide), weak.to(wide)
    never = torch.isneginf(given) | torch.isneginf(weak)
    return (weak + scale * (given - weak)).masked_fill(never, -torch.inf)
