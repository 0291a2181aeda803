"""The loss of mixed flows: cross-entropy of tokens beside the squared error of velocities.

    loss = E [ weight mean_i -log p(x1_i | z_t) + mean_j (v(t, z_t) - (x1 - x0))_j^2 ]

The minimum of either term is the conditional mean that the flow needs, given tokens and points, so
a weight between them only shares out the network. A part that is known has no term.
Source: Campbell et al. (2024), arXiv 2402.04997, section 4; Dunn and Koes (2024), arXiv 2404.19739.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError
from cflow.jump.loss import CrossEntropy
from cflow.jump.mixed import MixedFlow
from cflow.jump.mixed_state import Mixed
from cflow.jump.mixed_steps import HeldPosterior
from cflow.matching import ContextDropout, LinearPath, Stratified, TimeLaw, UniformTimes
from cflow.samples.options import expect_amount
from cflow.typing import Batch, Data, Points

__all__ = ["MixedTimes", "mixed_matching"]

LAW = Stratified(UniformTimes())
STRAIGHT = LinearPath()
CROSS_ENTROPY = CrossEntropy()


@dataclass(frozen=True)
class MixedTimes:
    """Draw one time for both parts, and in some rows let one of them be known, at time 1.

    Attributes:
        law: The law of the time of what is not known.
        tokens_known: Share of rows whose tokens are known, so that points are learnt given tokens.
        points_known: Share of rows whose points are known.

    Raises:
        DomainError: The shares are no shares.

    Example:
        >>> t = MixedTimes(tokens_known=1.0, points_known=0.0).sample(4, like=torch.zeros(1))
        >>> t[:, 0].tolist(), t.shape
        ([1.0, 1.0, 1.0, 1.0], torch.Size([4, 2]))
    """

    law: TimeLaw = LAW
    tokens_known: float = 0.1
    points_known: float = 0.1

    def __post_init__(self) -> None:
        if not (min(self.tokens_known, self.points_known) >= 0 and self._given <= 1):
            raise DomainError(
                "MixedTimes: shares must be 0 or more and 1 at most in all, got tokens_known="
                f"{self.tokens_known} and points_known={self.points_known}"
            )

    @property
    def _given(self) -> float:
        return self.tokens_known + self.points_known

    def sample(self, n: int, *, like: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw times of tokens and of points, `(n, 2)`, of the dtype and device of `like`."""
        t = self.law.sample(n, like=like, generator=generator)
        u = torch.rand(n, dtype=like.dtype, device=like.device, generator=generator)
        known = torch.stack([u < self.tokens_known, u >= 1 - self.points_known], -1)
        return torch.where(known, 1.0, t[:, None])


TIMES = MixedTimes()


def mixed_matching(
    flow: MixedFlow,
    tokens: Data,
    x: Points,
    context: Tensor | None = None,
    *,
    x0: Points | None = None,
    t: Tensor | None = None,
    times: MixedTimes = TIMES,
    token_weight: float = 1.0,
    dropout: ContextDropout | None = None,
    generator: Generator | None = None,
) -> Batch:
    """Return the loss of each data point; a `Trainer` takes it as it is.

    Args:
        flow: The flow, whose bases start the paths.
        tokens: Data tokens `(n, *token_event)`.
        x: Their points `(n, *point_event)`; centred clouds for a base of such.
        context: Conditions `(n, *context_shape)`.
        x0: Starts of the points, of the shape of x, turned towards them say; drawn from the base by
            default.
        t: Times of tokens and of points, `(n, 2)`; drawn by default.
        times: The law of times.
        token_weight: Factor on the cross-entropy, in (units of points)^2 per nat.
        dropout: Leaves out conditions, for guidance.
        generator: Source of the randomness.

    Returns:
        One number for each point, `(n,)`.

    Raises:
        ShapeError: Shapes disagree.
        DomainError: Tokens or points are no data, the weight is negative, or a context is missing
            or not expected.

    Example:
        >>> from cflow.base import MaskTokens, MeanFreeGaussian
        >>> from cflow.jump import MixedEGNN
        >>> network = MixedEGNN(5, 4, hidden_features=8, layers=1)
        >>> flow = MixedFlow(MaskTokens(6, 4), MeanFreeGaussian((6, 3)), network)
        >>> x = flow.base_points.sample((8,))
        >>> mixed_matching(flow, torch.randint(4, (8, 6)), x).shape
        torch.Size([8])
    """
    expect_amount("mixed_matching", token_weight=token_weight)
    flow.expect_state("mixed_matching", Mixed(tokens, x), context, data="both")
    tokens, n = tokens.long(), len(x)
    start = flow.base_tokens.sample((n,), generator=generator)
    x0 = flow.base_points.sample((n,), generator=generator).to(x.dtype) if x0 is None else x0
    t = times.sample(n, like=x, generator=generator) if t is None else t
    if t.shape != (n, 2):
        raise ShapeError(
            f"mixed_matching: t must hold times of tokens and of points, {(n, 2)}, got "
            f"{tuple(t.shape)}"
        )
    noise = torch.rand(tokens.shape, dtype=x.dtype, device=x.device, generator=generator)
    seen = flow.path.sample(start, tokens, t[:, 0], noise=noise).x
    point = STRAIGHT.sample(x0, x, t[:, 1])
    if dropout is not None and context is not None:
        context, _ = dropout.drop(context, generator=generator)
    held = HeldPosterior(flow.base_tokens, flow.path)
    held.answer, v = flow(t, seen, point.x, context)
    entropy = CROSS_ENTROPY(held, t[:, 0], seen, tokens)
    square = (v - point.target).square()
    each = torch.stack(
        [part.reshape(n, -1).mean(1) for part in (token_weight * entropy, square)], 1
    )
    return torch.where(t < 1, each, 0.0).sum(1)
