"""Unmask one token at a time, at the very times at which tokens jump: exact for masks.

With n masked tokens at a time of share kappa, the next one jumps at

    1 - kappa' = (1 - kappa) u^(1 / n),    u ~ U(0, 1),

it is any of them with the same chance, and takes a value from p(x1 | x_t) asked there and then.
These are the order statistics of s + e, e ~ Exp(1), in the clock s = -log(1 - kappa), one for each
masked token by itself, which is how they are drawn. Each token costs an evaluation of its row, and
there is no error of steps: samples have the law of the process whose rates the network gives.

Or, which token jumps is the one that the network is surest of. With the true posterior that gives
the law of data too, whichever order it is; a trained one errs most where much is open yet, and this
order leaves such tokens until more is known.
Source: Zheng et al. (2024), Masked diffusion models are secretly time-agnostic masked models and
exploit inaccurate categorical sampling, arXiv 2409.02908, section 4; Gillespie (1977); Kim et al.
(2025), Train for the worst, plan for the best, arXiv 2502.06768 (the order, by the margin).
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from cflow.errors import DomainError
from cflow.jump.draw import Draw
from cflow.jump.path import MixturePath
from cflow.jump.rates import Posterior
from cflow.jump.sampler import ENTRIES, JumpSampler, JumpWalk
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
        order: Which token jumps next: any, `"random"`; the one whose likeliest value has the
            greatest `"probability"`; or the greatest `"margin"` over its second. Tokens are drawn
            as ever. The last two know no law but that of data, and run to t = 1 alone.

    Raises:
        DomainError: `order` is not one of these. On use, the rates are no posterior of a mixture
            path from masks, or an order by the network is to end before t = 1.

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
    order: Literal["random", "probability", "margin"] = "random"

    def __post_init__(self) -> None:
        if self.order not in ("random", "probability", "margin"):
            raise DomainError(
                "FirstHitting: order must be 'random', 'probability' or 'margin', got "
                f"{self.order!r}"
            )

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
        if self.order != "random" and walk.end < 1:
            raise DomainError(
                f"FirstHitting: the order by {self.order} leaves the laws between base and data, "
                f"and runs to end=1 alone, got end={walk.end}; take order='random'"
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
            logits = self._ask(walk, rows, t, x)
            if self.order == "random":
                token = order[rows, event]
            else:
                masked = walk.movable(x)
                assert masked is not None
                token = self._surest(logits, masked[rows].reshape(len(rows), -1))
            logits = logits[torch.arange(len(rows), device=x.device), token]
            asked = torch.zeros_like(x, dtype=torch.bool).reshape(n, -1)
            asked[rows, token] = True
            expect_finite_rates("FirstHitting", t, logits, asked.reshape(x.shape))
            drawn = walk.drawn(self.draw, logits)
            return x.reshape(n, -1).index_put((rows, token), drawn).reshape(x0.shape)

        return march(unmask, x0, range(events + 1))

    def _ask(self, walk: JumpWalk, rows: Tensor, t: Tensor, x: Tensor) -> Tensor:
        """Return logits `(rows, tokens, vocabulary)` of rows, each at its time."""
        assert isinstance(walk.rates, Posterior)
        context = None if walk.context is None else walk.context[rows]
        t = t.to(torch.get_default_dtype())
        t = t.clamp_max(1 - torch.finfo(t.dtype).eps)  # data is not asked about
        logits = walk.rates.logits(t, x[rows], context)
        return logits.reshape(len(rows), -1, logits.shape[-1])

    def _surest(self, logits: Tensor, masked: Tensor) -> Tensor:
        """Return the place in each row of the masked token whose value is the least in doubt."""
        score = torch.full(masked.shape, -torch.inf, dtype=torch.float32, device=logits.device)
        for few in masked.nonzero().split(max(1, ENTRIES // logits.shape[-1])):
            place = tuple(few.T)
            best = logits[place].float().softmax(-1).topk(min(2, logits.shape[-1])).values
            score[place] = best[:, 0] - best[:, -1] if self.order == "margin" else best[:, 0]
        return score.argmax(1)  # not a number wins, and is named by the check that follows
