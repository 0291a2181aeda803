"""A sampler of tokens as a plain module: uniform numbers (and a context) in, tokens out.

    first    x_i with P(x <= k) > u_0i           the base, where it is not all masks
    step k   a token jumps where u < q_k,        q_k = 1 - (1 - kappa(t_k+1)) / (1 - kappa(t_k)),
             to x1 with P(x1 <= k | x_t) > v     by another number of its own

It is `MixtureSteps` with all numbers drawn beforehand, so that a file is a pure function. Every
token is asked at every step, whether it jumps or not: shapes do not depend on values.
Source: Gat et al. (2024), Discrete flow matching, arXiv 2407.15595, equations 21 to 24.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Generator, Tensor
from torch._higher_order_ops.scan import scan
from torch.nn import functional

from cflow.errors import DomainError
from cflow.export.exportable import Exportable, Kind
from cflow.export.parity import evaluating
from cflow.field import null_of
from cflow.jump import (
    ClassifierFreePosterior,
    JumpFlow,
    JumpSampler,
    MixturePath,
    MixtureSteps,
    NoisingPath,
    Posterior,
)
from cflow.jump.tokens import expect_independent
from cflow.typing import Data, Points

__all__ = ["TokenSampler"]

TokenGuide: TypeAlias = float | Callable[[Posterior], Posterior]

NARROW = 1e-4
"""Smallest share of a cell in whose middle examples are put."""


class TokenSampler(Exportable):
    """Carry tokens from the base to the data with numbers that were drawn beforehand.

    Its noise is uniform in [0, 1), one number a token for the base, unless that is all masks, and
    two for each step: `(batch, 2 * steps + 1, *event)`, or `2 * steps` with masks.

    Args:
        flow: The flow.
        steps: Steps of the sampler; by default its own.
        sampler: How steps are taken, temperature and the like among it; the flow's own by default.
        guidance: The scale of classifier-free guidance, or a function that guides a posterior.
        context: One condition that is built in, `context_shape`; the sampler then takes noise
            alone.

    Attributes:
        flow: The flow, guided.
        sampler: How steps are taken.
        unrolled: Whether files hold the network once for every step, in place of a loop.

    Raises:
        DomainError: The sampler is another than `MixtureSteps` or refreshes tokens, the rates are
            no posterior along a mixture or noising path, tokens of the base depend on each other,
            or there is no context to build in or to be guided by.
        ShapeError: The context that is to be built in has another shape.

    Example:
        >>> from cflow import recipes
        >>> flow = recipes.token_mlp(2, 5, hidden_features=(8,))
        >>> sampler = TokenSampler(flow, steps=4)
        >>> sampler(torch.rand(3, *sampler.in_shape)).shape
        torch.Size([3, 2])
    """

    kind: ClassVar[Kind] = "sampler"
    input_name: ClassVar[str] = "noise"
    output_name: ClassVar[str] = "samples"
    times: Tensor
    chances: Tensor

    def __init__(
        self,
        flow: JumpFlow,
        steps: int | None = None,
        *,
        sampler: MixtureSteps | None = None,
        guidance: TokenGuide | None = None,
        context: Tensor | None = None,
    ) -> None:
        super().__init__(flow, context)
        self.dtype = torch.promote_types(self.dtype, torch.float32)  # of numbers and times
        path = _expect_posterior(flow)
        self.guidance = None if guidance is None else _said(guidance)
        self.flow = flow if guidance is None else _guided(flow, guidance)
        self.sampler = _expect_steps(flow.sampler if sampler is None else sampler)
        if steps is not None:
            self.sampler = replace(self.sampler, steps=steps)
        times = [*self.sampler.times(0.0, 1.0)]
        chances = [-math.expm1(-path.clock.between(t, later)) for t, later in pairwise(times)]
        chances[-1] = 2.0  # a certain jump, even for a number that was rounded up to 1
        device = next((p.device for p in flow.parameters()), torch.device("cpu"))
        for name, values in (("times", times[:-1]), ("chances", chances)):
            held = torch.tensor(values, dtype=self.dtype, device=device)
            self.register_buffer(name, held, persistent=False)
        self.first = 0 if flow.base.absorbing else 1  # masks need no noise
        self.in_shape = (self.first + 2 * len(chances), *flow.event_shape)
        self.unrolled = False

    def forward(self, noise: Points, context: Tensor | None = None) -> Data:
        """Return tokens `(batch, *event)` for uniform numbers `(batch, numbers, *event)`."""
        noise, context = self._enter(noise, context)
        slots = noise.movedim(noise.dim() - len(self.in_shape), 0)
        x = self._start(slots[0])
        steps = (self.times, self.chances, slots[self.first :].unflatten(0, (-1, 2)))
        if torch.compiler.is_exporting() and not self.unrolled:
            return self._looped(x, steps, context)
        for k, step in enumerate(zip(*steps, strict=True)):
            x = self._step(x, step, context, last=k == len(self.times) - 1)
        return x

    def draw(self, n: int, context: Tensor | None, generator: Generator) -> Tensor:
        """Draw numbers in the middle of what they decide, where no rounding moves them.

        A number at the border of two tokens falls to either side in another runtime, and takes the
        rest of the way with it: that would say nothing of the file.
        """
        device = self.times.device
        noise = torch.rand((n, *self.in_shape), generator=generator).to(device, self.dtype)
        with evaluating(self):
            if self.first:
                noise[:, 0] = middle(self._start_below(noise[:, 0]), noise[:, 0])
            x = self._start(noise[:, 0])
            for k, (t, chance) in enumerate(zip(self.times, self.chances, strict=True)):
                pair = noise[:, self.first + 2 * k : self.first + 2 * k + 2]
                below = self._below(x, t, context, last=k == len(self.times) - 1)
                if not bool(below[..., -1].isfinite().all()):
                    raise DomainError(
                        f"TokenSampler: logits at t={t.item():g} are not finite; check the network"
                    )
                pair[:, 1] = middle(below, pair[:, 1])
                x = self._jumped(x, below, chance, pair.movedim(1, 0))
        return noise

    def facts(self) -> dict[str, Any]:
        base = self.flow.base
        return {
            "data_shape": self.flow.event_shape,
            "base": "Uniform",  # the law of the noise
            "base_shape": base.event_shape,
            "start": type(base).__name__,
            "vocabulary": base.vocabulary,
            "steps": [len(self.times)],
            "solvers": [str(self.sampler)],
            "guidance": self.guidance,
            "likelihood": None,
        }

    @property
    def _rates(self) -> Posterior:
        assert isinstance(self.flow.rates, Posterior)  # as was looked at when it was built
        return self.flow.rates

    def _start(self, u: Tensor) -> Tensor:
        base = self.flow.base
        if base.absorbing:
            return torch.full_like(u, base.vocabulary, dtype=torch.long)
        return found(self._start_below(u), u)

    def _start_below(self, u: Tensor) -> Tensor:
        p = self.flow.base.marginals()
        wide = torch.promote_types(p.dtype, torch.float32)
        return p.to(u.device, wide).cumsum(-1).expand(*u.shape, -1)

    def _looped(
        self, x: Tensor, steps: tuple[Tensor, Tensor, Tensor], context: Tensor | None
    ) -> Tensor:
        """Take the steps in a loop of the graph, which then holds the network once."""
        ahead = len(self.times) - self.sampler.argmax  # a last step that differs stands by itself

        def step(x: Tensor, given: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            x = self._step(x, given, context, last=False)
            return x, x.new_zeros(0)

        if ahead:
            x, _ = scan(step, x, tuple(part[:ahead] for part in steps))
        if self.sampler.argmax:
            t, chance, pair = (part[-1] for part in steps)
            x = self._step(x, (t, chance, pair), context, last=True)
        return x

    def _step(
        self, x: Tensor, given: tuple[Tensor, Tensor, Tensor], context: Tensor | None, *, last: bool
    ) -> Tensor:
        t, chance, pair = given
        return self._jumped(x, self._below(x, t, context, last=last), chance, pair)

    def _below(self, x: Tensor, t: Tensor, context: Tensor | None, *, last: bool) -> Tensor:
        """Return running sums of what a token may become, `(batch, *event, vocabulary)`."""
        batch = x.shape[: x.dim() - len(self.flow.event_shape)]
        logits = self._rates.logits(t.expand(batch), x, context)
        if last and self.sampler.argmax:
            likeliest = functional.one_hot(logits.argmax(-1), logits.shape[-1])
            return likeliest.to(self.dtype).cumsum(-1)
        rows = self.sampler.draw._weights(logits.reshape(-1, logits.shape[-1]))
        return rows.cumsum(-1).reshape(logits.shape)

    def _jumped(self, x: Tensor, below: Tensor, chance: Tensor, pair: Tensor) -> Tensor:
        """Let tokens jump by two numbers each, `(2, batch, *event)`: whether, and where to."""
        moves, unsettled = pair[0] < chance, self._rates.unsettled(x)
        moves = moves if unsettled is None else moves & unsettled
        return torch.where(moves, found(below, pair[1]), x)


def found(below: Tensor, u: Tensor) -> Tensor:
    """Return the index whose share of a running sum holds u; never one of no share.

    Example:
        >>> found(torch.tensor([[0.0, 0.5, 0.5, 2.0]]), torch.tensor([0.2])).tolist()
        [1]
        >>> found(torch.tensor([[0.0, 0.5, 0.5, 2.0]]), torch.tensor([0.25])).tolist()
        [3]
    """
    total = below[..., -1:]
    reach = u[..., None].to(below.dtype) * total
    return ((below <= reach) & (below < total)).sum(-1)  # the second for u rounded up to 1


def middle(below: Tensor, u: Tensor) -> Tensor:
    """Return numbers that give the same indices from the middle of their shares.

    Those of less than a ten-thousandth give way to the largest.

    Example:
        >>> middle(torch.tensor([[0.0, 0.5, 0.5, 2.0]]), torch.tensor([0.26])).tolist()
        [0.625]
    """
    share = below.diff(dim=-1, prepend=torch.zeros_like(below[..., :1])) / below[..., -1:]
    index = found(below, u)[..., None]
    index = torch.where(share.gather(-1, index) < NARROW, share.argmax(-1, keepdim=True), index)
    top = below.gather(-1, index) / below[..., -1:]
    return (top - share.gather(-1, index) / 2)[..., 0].to(u)


def _expect_posterior(flow: JumpFlow) -> MixturePath | NoisingPath:
    """Return the path of the posterior, or raise where there is no such."""
    rates, base = flow.rates, flow.base
    path = rates.path if isinstance(rates, Posterior) else None
    if not isinstance(path, MixturePath | NoisingPath):
        raise DomainError(
            "TokenSampler: needs a posterior along a MixturePath or NoisingPath, got "
            f"{type(rates).__name__} along {type(rates.path).__name__}"
        )
    expect_independent("TokenSampler", base)
    return path


def _expect_steps(sampler: JumpSampler) -> MixtureSteps:
    if not isinstance(sampler, MixtureSteps) or sampler.refresh:
        raise DomainError(
            f"TokenSampler: only MixtureSteps without a refresh go into a file, got {sampler}; "
            "pass sampler=MixtureSteps(16)"
        )
    return sampler


def _guided(flow: JumpFlow, guidance: TokenGuide) -> JumpFlow:
    rates = flow.rates
    assert isinstance(rates, Posterior)  # as was looked at
    if not isinstance(guidance, int | float):
        return flow.with_rates(guidance(rates))
    if flow.context_shape is None:
        raise DomainError("TokenSampler: this flow is unconditional, so nothing guides it")
    return flow.with_rates(ClassifierFreePosterior(rates, guidance, null=null_of(rates)))


def _said(guidance: TokenGuide) -> float | str:
    return float(guidance) if isinstance(guidance, int | float) else str(guidance)
