"""Variational inference: fit a flow q to a density p known up to a constant.

    reverse KL:   E_q[log q(x) - log p(x)] = KL(q || p / Z) - log Z
    Renyi bound:  L_a = E[1 / (1 - a) log (1/K) sum_k w_k^(1 - a)],   w_k = p(x_k) / q(x_k)

with L_0 the importance-weighted bound of log Z, and L_1, its limit, the evidence lower bound. The
forward KL needs samples of p, and is `nll` on them.

Three gradients, all unbiased for the reverse KL. "total" differentiates everything. "path" leaves
out the derivative of log q by its own parameters, whose mean is zero but whose variance is not:
where q = p its gradient vanishes sample by sample (sticking the landing). It costs one pull of the
flow more, so it is for flows whose pull is cheap as well: couplings, few features. "score" needs no
derivative of p, and has the largest variance. For the Renyi bound, doubly reparameterised gradients
take the place of "path": the weights v_k = w_k^(1 - a) / sum w^(1 - a) are differentiated through
the samples as well, so sample k counts a v_k + (1 - a) v_k^2.

Source: Roeder et al. (2017), Sticking the landing, arXiv 1703.09194; Li and Turner (2016), Renyi
divergence variational inference, arXiv 1602.02311, equation 9; Tucker et al. (2019), Doubly
reparameterized gradient estimators, arXiv 1810.04152, equations 8 and 13.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError, expect_positive
from cflow.flow import Flow

__all__ = [
    "Gradient",
    "LinearAnnealing",
    "LogTarget",
    "alpha_divergence",
    "drawn",
    "reverse_kl",
]

Gradient: TypeAlias = Literal["path", "total", "score"]

LogTarget: TypeAlias = Callable[..., Tensor]
"""Called as `log_target(x)`, or `log_target(x, context)` where a context is given; returns the log
of the unnormalised density for each point, `(samples, *batch)`."""


def reverse_kl(
    flow: Flow,
    log_target: LogTarget,
    *,
    context: Tensor | None = None,
    samples: int = 64,
    gradient: Gradient = "path",
    generator: Generator | None = None,
) -> Tensor:
    """Return log q(x) - log p(x) at points drawn from the flow; its mean is KL(q || p) - log Z.

    Parameters of the target (a decoder's, say) get their gradient too. The result can be
    differentiated once.

    Args:
        flow: The q; an exact likelihood, or an unbiased estimate of it.
        log_target: The log of p.
        context: Conditions `(*batch, *context_shape)`, for amortised inference.
        samples: Points for each condition.
        gradient: "path" (sticking the landing), "total" or "score" (reinforce, with the mean of
            the other points as baseline).
        generator: Source of the points.

    Returns:
        Nats per point, `(samples, *batch)`.

    Raises:
        DomainError: The flow's likelihood is a bound.
        ShapeError: The target does not return one number per point.

    Example:
        >>> from cflow.base import Gaussian
        >>> from cflow.transport import ActNorm
        >>> flow = Flow(Gaussian(2), ActNorm((2,)))
        >>> loss = reverse_kl(flow, Gaussian(2).log_prob, samples=5)  # q = p already
        >>> loss.abs().max().item() < 1e-6
        True
    """
    _expect_density("reverse_kl", flow, samples, ("exact", "estimate"))
    if gradient == "total":
        x, log_q = flow.sample_and_log_prob(samples, context, generator=generator)
        return log_q - _at(log_target, x, context)
    if gradient == "score":
        x = flow.sample(samples, context, generator=generator)
        log_q = flow.log_prob(x, context, generator=generator)
        log_p = _at(log_target, x, context)
        gain = (log_q - log_p).detach()
        others = (gain.sum(0) - gain) / max(1, samples - 1)
        return _with_gradient(gain, (gain - others) * log_q - log_p)
    x, log_q, log_p, slopes = _along_the_path(flow, log_target, context, samples, generator)
    return _with_gradient(log_q - log_p, -_inner(slopes, x, log_p) - log_p)


def alpha_divergence(
    flow: Flow,
    log_target: LogTarget,
    *,
    alpha: float = 0.0,
    context: Tensor | None = None,
    samples: int = 16,
    doubly_reparameterized: bool = True,
    generator: Generator | None = None,
) -> Tensor:
    """Return the negative Renyi bound, D_alpha(q || p / Z) - log Z for many samples.

    With alpha = 0 the negative of it is the importance-weighted bound of log Z (IWAE), which rises
    with the number of samples; alpha = 1 is `reverse_kl`. In between, a small alpha covers the mass
    of p, a large one seeks a mode.

    Args:
        flow: The q; its likelihood must be exact.
        log_target: The log of p.
        alpha: Order of the divergence, in [0, 1].
        context: Conditions `(*batch, *context_shape)`.
        samples: The K above, for each condition.
        doubly_reparameterized: Differentiate as said above, at the cost of one pull more, instead
            of everything; with many samples the plain gradient drowns in its noise.
        generator: Source of the points.

    Returns:
        Nats for each condition, `(*batch,)`; a single number without conditions.

    Raises:
        DomainError: alpha is out of range, or the likelihood is not exact.
        ShapeError: The target does not return one number per point.

    Example:
        >>> from cflow.base import Gaussian
        >>> from cflow.transport import Affine, Chain
        >>> flow = Flow(Gaussian(1), Affine(2.0))
        >>> log_z = -alpha_divergence(flow, lambda x: -x.square().sum(-1) / 2, samples=100_000)
        >>> abs(log_z.item() - 0.9189) < 0.02  # half of log 2 pi
        True
    """
    _expect_density("alpha_divergence", flow, samples, ("exact",))
    if not 0 <= alpha <= 1:
        raise DomainError(f"alpha_divergence: alpha must lie in [0, 1], got {alpha}")
    if not doubly_reparameterized:
        x, log_q = flow.sample_and_log_prob(samples, context, generator=generator)
        return -_renyi(_at(log_target, x, context) - log_q, alpha)
    x, log_q, log_p, slopes = _along_the_path(flow, log_target, context, samples, generator)
    log_w = (log_p - log_q).detach()
    v = torch.softmax((1 - alpha) * log_w, dim=0)
    counted = alpha * v + (1 - alpha) * v.square()
    surrogate = (counted * _inner(slopes, x, log_p) + v * log_p).sum(0)
    return _with_gradient(-_renyi(log_w, alpha), -surrogate)


def drawn(objective: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a loss for `Trainer` of an objective that draws its own points.

    The data of such a training are the conditions of a conditional flow; for another flow they
    count for nothing, and `torch.zeros(1)` will do.

    Args:
        objective: `reverse_kl` or `alpha_divergence` with all else filled in; called as
            `objective(flow, context=context, generator=generator)`.

    Example:
        >>> from functools import partial
        >>> from cflow import recipes
        >>> from cflow.base import Gaussian
        >>> from cflow.train import Trainer
        >>> flow = recipes.realnvp(2, transforms=2, hidden_features=(8,))
        >>> loss = drawn(partial(reverse_kl, log_target=Gaussian(2).log_prob, samples=16))
        >>> Trainer(flow, loss, steps=2).fit(torch.zeros(1)).step
        2
    """

    def loss(flow: Flow, *batch: Tensor, generator: Generator | None = None) -> Tensor:
        context = None if flow.context_shape is None else batch[0]
        return objective(flow, context=context, generator=generator)

    return loss


@dataclass(frozen=True)
class LinearAnnealing:
    """Rise linearly from `start` at step 0 to `end` at step `steps`, and stay there.

    A loss does not know its step: hold the count as a buffer of the model, so that checkpoints
    keep it, and weight the KL term, or the log target, by `at(step)`.

    Args:
        steps: Steps of the rise.
        start: First value.
        end: Last value.

    References:
        Bowman et al. (2016), arXiv 1511.06349, section 3.1; Rezende and Mohamed (2015), arXiv
        1505.05770, equation 20.

    Example:
        >>> schedule = LinearAnnealing(100, start=0.1)
        >>> [round(schedule.at(step), 2) for step in (0, 50, 100, 1000)]
        [0.1, 0.55, 1.0, 1.0]
    """

    steps: int
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        expect_positive("LinearAnnealing", steps=self.steps)

    def at(self, step: int) -> float:
        """Return the value at a step, counted from 0."""
        return self.start + (self.end - self.start) * min(1.0, max(0, step) / self.steps)


def _along_the_path(
    flow: Flow,
    log_target: LogTarget,
    context: Tensor | None,
    samples: int,
    generator: Generator | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return points, log q and log p at them, and the slopes of log p - log q by the point alone.

    The points carry gradients of the flow's parameters; log p those of the target's, and log q is
    a value only, as no parameter of a density is differentiated.
    """
    x = flow.rsample(samples, context, generator=generator)
    with torch.enable_grad():
        points = x.detach().requires_grad_()
        log_q = flow.log_prob(points, context, generator=generator)
        log_p = _at(log_target, points, context)
        (slopes,) = torch.autograd.grad((log_p - log_q).sum(), points, retain_graph=True)
    if not torch.is_grad_enabled():
        log_p = log_p.detach()
    return x, log_q.detach(), log_p, slopes


def _at(log_target: LogTarget, x: Tensor, context: Tensor | None) -> Tensor:
    log_p = log_target(x) if context is None else log_target(x, context)
    if x.shape[: log_p.dim()] != log_p.shape or log_p.dim() == x.dim() > 1:
        raise ShapeError(
            f"log_target: expected one number for each point, got {tuple(log_p.shape)} for points "
            f"{tuple(x.shape)}; sum over the event"
        )
    return log_p


def _inner(slopes: Tensor, x: Tensor, like: Tensor) -> Tensor:
    """Return <slope, x> for each point: its gradient is the slope along dx/d(parameters)."""
    products = slopes * x
    return products.flatten(like.dim()).sum(-1) if products.dim() > like.dim() else products


def _with_gradient(value: Tensor, surrogate: Tensor) -> Tensor:
    """Return the value, with the gradient of the surrogate."""
    return value.detach() + (surrogate - surrogate.detach())


def _renyi(log_w: Tensor, alpha: float) -> Tensor:
    if alpha == 1:
        return log_w.mean(0)
    power = 1 - alpha
    return ((power * log_w).logsumexp(0) - math.log(len(log_w))) / power


def _expect_density(where: str, flow: Flow, samples: int, kinds: tuple[str, ...]) -> None:
    expect_positive(where, samples=samples)
    if flow.likelihood not in kinds:
        raise DomainError(
            f"{where}: the density of the flow's samples must be {' or '.join(kinds)}, got "
            f"likelihood {flow.likelihood!r}"
        )
