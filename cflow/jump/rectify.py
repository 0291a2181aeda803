"""Rectified flows of tokens: pairs made by a flow, whose steps lose less than those of data.

    x1 = push(x0), x0 ~ base;    then match the path on the pairs (x0, x1)

A step draws each token by itself, and what the tokens of x1 have in common is lost in it. Pairs
made by a flow depend on each other: given x0, the tokens of x1 have less in common, in each round,
so that fewer steps do. On two tokens of four values, 0.925 of them equal and the base uniform, the
law of one step is off by 0.68 in total variation, by 0.54, 0.43 and 0.37 after one to three rounds.
That needs a base that says something; with masks all is in the draws, see `distil.py`.
Source: Yoo et al. (2025), ReDi: rectified discrete flow, arXiv 2507.15897; Liu et al.
(2023), Flow straight and fast, arXiv 2209.03003.
"""

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from cflow.errors import DomainError, ShapeError
from cflow.jump.flow import JumpFlow
from cflow.jump.loss import CrossEntropy, JumpLoss, jump_matching
from cflow.jump.sampler import JumpSampler
from cflow.matching import PairedCoupling, Stratified, TimeLaw, UniformTimes
from cflow.matching.teacher import evaluating
from cflow.samples.options import expect_count
from cflow.typing import Batch, Data

__all__ = ["rectified_matching", "token_pairs"]

CROSS_ENTROPY = CrossEntropy()
PAIRED = PairedCoupling()
TIMES = Stratified(UniformTimes())


def token_pairs(
    flow: JumpFlow,
    n: int,
    *,
    context: Tensor | None = None,
    sampler: JumpSampler | None = None,
    chunk: int = 4096,
    generator: Generator | None = None,
    progress: bool = False,
) -> tuple[Data, Data]:
    """Make pairs of tokens at the two ends of a flow; no gradients.

    Args:
        flow: The flow, in any mode: it is run in evaluation mode.
        n: Number of pairs.
        context: Conditions of the pairs, `(n, *context_shape)`.
        sampler: How steps are taken; the flow's own by default. Many, as they are paid for once.
        chunk: Pairs that are drawn together.
        generator: Source of the randomness.
        progress: Show a bar of the pairs where there is a terminal.

    Returns:
        Starts x0 and ends x1, `(n, *event)`. `Trainer(copy, rectified_matching).fit((x1, x0))`, or
        `(x1, x0, context)`, trains a copy on them.

    Raises:
        DomainError: n or chunk is no count, the base holds masks alone, or the flow wants a context
            or takes none.
        ShapeError: There is not one condition for each pair.

    References:
        Yoo et al. (2025), arXiv 2507.15897.

    Example:
        >>> from cflow.base import UniformTokens
        >>> from cflow.jump import NetworkPosterior, TokenMLP
        >>> base = UniformTokens(2, 4)
        >>> flow = JumpFlow(base, NetworkPosterior(TokenMLP(2, 4, 4), base))
        >>> x0, x1 = token_pairs(flow, 10)
        >>> x0.shape, x1.shape
        (torch.Size([10, 2]), torch.Size([10, 2]))
    """
    expect_count("token_pairs", n=n, chunk=chunk)
    if flow.base.absorbing:
        raise DomainError(
            "token_pairs: all starts are masks, so pairs would say nothing that the ends do not; "
            "take step_distillation"
        )
    if (context is None) != (flow.context_shape is None):
        raise DomainError(
            f"token_pairs: the flow {'needs a' if context is None else 'takes no'} context, "
            f"got {None if context is None else tuple(context.shape)}"
        )
    if context is not None and len(context) != n:
        raise ShapeError(
            f"token_pairs: needs one condition for each of {n} pairs, got {tuple(context.shape)}"
        )
    starts, ends = [], []
    silent = None if progress else True  # None: silent where there is no terminal
    bar = tqdm(total=n, desc="pairs", disable=silent, leave=False)
    with torch.no_grad(), evaluating(flow), bar:
        for first in range(0, n, chunk):
            asked = None if context is None else context[first : first + chunk]
            m = min(chunk, n - first)
            x0 = flow.base.sample((m,), asked, generator=generator)
            x1 = (flow.sampler if sampler is None else sampler).sample(
                flow.rates, x0, asked, base=flow.base, generator=generator
            )
            starts.append(x0)
            ends.append(x1)
            bar.update(m)
    return torch.cat(starts), torch.cat(ends)


def rectified_matching(
    flow: JumpFlow,
    x1: Data,
    x0: Data,
    context: Tensor | None = None,
    *,
    times: TimeLaw = TIMES,
    loss: JumpLoss = CROSS_ENTROPY,
    generator: Generator | None = None,
) -> Batch:
    """Return the loss of each pair: `jump_matching` where start k goes to end k.

    Args:
        flow: What is trained; a copy of the flow that made the pairs, to begin with.
        x1: Ends `(n, *event)`.
        x0: Their starts.
        context: Conditions `(n, *context_shape)`.
        times: The law of times; `StepTimes(k)` for a flow that will take k steps.
        loss: What is compared.
        generator: Source of the randomness.

    Returns:
        One number per pair, `(n,)`.

    Raises:
        ShapeError: Shapes disagree.
        DomainError: Tokens are out of range, or the loss does not fit the rates.

    Example:
        >>> from cflow.base import UniformTokens
        >>> from cflow.jump import NetworkPosterior, TokenMLP
        >>> base = UniformTokens(2, 4)
        >>> flow = JumpFlow(base, NetworkPosterior(TokenMLP(2, 4, 4), base))
        >>> rectified_matching(flow, *token_pairs(flow, 10)[::-1]).shape
        torch.Size([10])
    """
    return jump_matching(
        flow, x1, context, x0=x0, coupling=PAIRED, times=times, loss=loss, generator=generator
    )
