"""Unmask one token at a time, at the very times at which tokens jump: exact for masks.

With n masked tokens at a time of share kappa, the next one jumps at

    1 - kappa' = (1 - kappa) u^(1 / n),    u ~ U(0, 1),

it is any of them with the same chance, and takes a value from p(x1 | x_t) asked there and then.
These are the order statistics of s + e, e ~ Exp(1), in the clock s = -log(1 - kappa), one for each
masked token by itself, which is how they are drawn. Each token costs an evaluation of its row, and
there is no error of steps: samples have the law of the process whose rates the network gives.
Source: Zheng et al. (2024), Masked diffusion models are secretly time-agnostic masked models and
exploit inaccurate categorical sampling, arXiv 2409.02908, section 4; Gillespie (1977).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cflow.errors import DomainError
from cflow.jump.draw import Draw
from cflow.jump.path import MixturePath
from cflow.jump.rates import Posterior
from cflow.jump.sampler import JumpSampler, JumpWalk
from cflow.jump.tokens import expect_finite_rates
from cflow.ode import march

__all__ = ["FirstHitting"]

DRAW = Draw()


@dataclass(frozen=True)
class FirstHitting(JumpSampler):
    """Unmask tokens one by one, each row of a batch at times of its own.

    The network sees only the rows that still move, each with its time.

    Attributes:
        draw: How tokens are drawn: temperature, nucleus, precision.

    Raises:
        DomainError: On use, the rates are no posterior of a mixture path from masks.

    Example:
        >>> from cflow.base import MaskTokens
        >>> from cflow.jump import NetworkPosterior
        >>> base = MaskTokens(6, 4)
        >>> uniform = lambda t, x, context: torch.zeros(*x.shape, 4)
        >>> rates = NetworkPosterior(uniform, base)
        >>> FirstHitting().sample(rates, base.sample((5,)), base=base).max().item() < 4
        True
    """

    draw: Draw = DRAW

    def run(self, walk: JumpWalk, x0: Tensor, start: float, bar: "tqdm[Any]") -> Tensor:
        rates = walk.rates
        if not isinstance(rates, Posterior) or not isinstance(rates.path, MixturePath):
            raise DomainError(
                "FirstHitting: needs a posterior along a MixturePath, got "
                f"{type(rates).__name__} along {type(rates.path).__name__}; take MixtureSteps for "
                "a posterior, EulerJumps for rates"
            )
        moves = walk.movable(x0)
        if not rates.absorbing or moves is None:
            raise DomainError(
                "FirstHitting: needs a base whose tokens all start as masks, got "
                f"{type(walk.base).__name__}; take MixtureSteps"
            )
        clock, n = rates.path.clock, len(x0)
        begin, end = clock(torch.tensor([start, walk.end], dtype=torch.float64)).tolist()
        wait = -torch.log1p(-walk.uniform(*x0.shape, like=x0).double())
        s = (begin + wait).masked_fill(~moves, torch.inf).reshape(n, -1)
        s, order = s.masked_fill(s > end, torch.inf).sort(1)
        events = int(s.isfinite().sum(1).max())
        bar.reset(total=events)

        def unmask(event: int, _: int, x: Tensor) -> Tensor:
            bar.update()
            rows = s[:, event].isfinite().nonzero()[:, 0]
            t = clock.time(s[rows, event])
            drawn = walk.drawn(self.draw, self._ask(walk, rows, t, x, order[rows, event]))
            x = x.reshape(n, -1).index_put((rows, order[rows, event]), drawn)
            return x.reshape(x0.shape)

        return march(unmask, x0, range(events + 1))

    def _ask(self, walk: JumpWalk, rows: Tensor, t: Tensor, x: Tensor, token: Tensor) -> Tensor:
        """Return logits `(rows, vocabulary)` of one token of each row at its time."""
        assert isinstance(walk.rates, Posterior)
        context = None if walk.context is None else walk.context[rows]
        t = t.to(torch.get_default_dtype())
        t = t.clamp_max(1 - torch.finfo(t.dtype).eps)  # data is not asked about
        logits = walk.rates.logits(t, x[rows], context)
        logits = logits.reshape(len(rows), -1, logits.shape[-1])
        logits = logits[torch.arange(len(rows), device=x.device), token]
        asked = torch.zeros_like(x, dtype=torch.bool).reshape(len(x), -1)
        asked[rows, token] = True
        expect_finite_rates("FirstHitting", t, logits, asked.reshape(x.shape))
        return logits
