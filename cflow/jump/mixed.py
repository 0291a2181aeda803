"""Mixed flows: tokens and points carried together, as the elements and places of atoms are.

    z_t = (tokens, x):    tokens jump x -> y at rate p(y | z_t) per unit of the clock of their path,
                          points move by dx/dt = E[x1 - x0 | z_t]

Given their ends, the parts are independent: tokens take a mixture path, points a straight line. So
one network that sees both gives the logits of the tokens' ends and the velocity of the points, and
their joint law at each time is that of the path.

The network sees two times, `t[..., 0]` of the tokens and `t[..., 1]` of the points. Both go from 0
to 1 together; a part that is known is data, and its time is 1 all the way. Thus a network that has
learnt such pairs of times too (`MixedTimes`) draws points given tokens, and tokens given points.

There is no `elbo` of both. Points move without noise along a velocity that changes as tokens jump,
so the law of the model's ways and that of the paths to a data point share no way, and their
divergence, which a bound would be made of, is infinite. Of each part given the other there is a
likelihood: `points_given_tokens` and `tokens_given_points`.
Source: Campbell et al. (2024), Generative flows on discrete state-spaces, arXiv 2402.04997,
section 4 (MultiFlow, two times); Dunn and Koes (2024), Mixed continuous and categorical flow
matching for 3D de novo molecule generation, arXiv 2404.19739 (FlowMol).
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from cflow import archive
from cflow.base import Base, TokenBase
from cflow.errors import DomainError, ShapeError, SolverError
from cflow.jump.mixed_state import (
    Mixed,
    Part,
    batch_axes,
    expect_condition,
    expect_mixed,
)
from cflow.jump.mixed_steps import HeldPosterior, MixedSteps, MixedWalk
from cflow.jump.path import MixturePath
from cflow.jump.sampler import JumpWalk
from cflow.jump.tokens import expect_flags
from cflow.typing import Data, Points

__all__ = ["MixedFlow"]

MIXTURE = MixturePath()
STEPS = MixedSteps()


class MixedFlow(nn.Module):
    """Hold a base of each part and a network, and draw tokens and points together.

    Args:
        base_tokens: The law of tokens at t = 0.
        base_points: The law of points at t = 0; with `MeanFreeGaussian` all points are clouds that
            are centred, and the network's velocity has to keep them so.
        network: Called as `network(t, tokens, x, context)` with times `(n, 2)`, those of tokens
            first; gives logits `(n, *token_event, vocabulary)` and a velocity of the shape of x.
        path: The path of tokens; points go straight.
        sampler: How `sample` takes its steps.
        context_shape: Shape of one condition, () for class labels; None for an unconditional flow.

    References:
        Campbell et al. (2024), arXiv 2402.04997, section 4.

    Example:
        >>> from cflow.base import MaskTokens, MeanFreeGaussian
        >>> from cflow.jump import MixedEGNN
        >>> network = MixedEGNN(states=5, outputs=4, hidden_features=8, layers=1)
        >>> flow = MixedFlow(MaskTokens(6, 4), MeanFreeGaussian((6, 3)), network)
        >>> elements, places = flow.sample(5)
        >>> elements.shape, places.shape
        (torch.Size([5, 6]), torch.Size([5, 6, 3]))
        >>> again = flow.sample((), tokens=elements)
        >>> torch.equal(again.tokens, elements)
        True
    """

    def __init__(
        self,
        base_tokens: TokenBase,
        base_points: Base,
        network: nn.Module,
        *,
        path: MixturePath = MIXTURE,
        sampler: MixedSteps = STEPS,
        context_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.base_tokens, self.base_points = base_tokens, base_points
        self.network = network
        self.path = path
        self.sampler = sampler
        self.context_shape = None if context_shape is None else tuple(context_shape)

    def forward(
        self, t: Tensor, tokens: Data, x: Points, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return logits of the tokens' ends, and the velocity of the points.

        Args:
            t: Times of tokens and of points, `(n, 2)`.
            tokens: Tokens at theirs, `(n, *token_event)`.
            x: Points at theirs, `(n, *point_event)`.
            context: Conditions `(n, *context_shape)`.

        Raises:
            ShapeError: The network answers with other shapes.
        """
        logits, v = self.network(t, tokens, x, context)
        wanted = (*tokens.shape, self.base_tokens.vocabulary)
        if tuple(logits.shape) != wanted or v.shape != x.shape:
            raise ShapeError(
                f"MixedFlow: the network must return logits {wanted} and a velocity "
                f"{tuple(x.shape)}, got {tuple(logits.shape)} and {tuple(v.shape)}"
            )
        return logits, v

    def sample(
        self,
        shape: Sequence[int] | int = (),
        context: Tensor | None = None,
        *,
        tokens: Data | None = None,
        points: Points | None = None,
        sampler: MixedSteps | None = None,
        generator: Generator | None = None,
        progress: bool = False,
    ) -> Mixed:
        """Draw both parts, or one of them given the other.

        Args:
            shape: Sample shape, or a number of states; draws for each condition and known part.
            context: Conditions `(*batch, *context_shape)`.
            tokens: Known tokens `(*batch, *token_event)`: draws points for them.
            points: Known points `(*batch, *point_event)`: draws tokens for them.
            sampler: How steps are taken; the flow's own by default.
            generator: Source of the randomness.
            progress: Show a bar of the steps where there is a terminal.

        Returns:
            A state of axes `(*shape, *batch)` before those of a part.

        Raises:
            DomainError: Both parts are known, a context is missing or not expected, or a known part
                is no data.
            ShapeError: Batch axes do not broadcast.
            SolverError: The network's velocity is not finite.
        """
        if tokens is not None and points is not None:
            raise DomainError(
                "MixedFlow.sample: tokens and points are both known, nothing is drawn"
            )
        expect_condition("MixedFlow.sample", context, self.context_shape)
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        own = self.base_tokens.event_shape, self.base_points.event_shape
        full = shape + batch_axes(
            "MixedFlow.sample",
            tokens=(tokens, own[0]),
            points=(points, own[1]),
            context=(context, self.context_shape or ()),
        )
        n = math.prod(full)
        flat = lambda z, one: z.expand(*full, *one).reshape(n, *one)
        draw = lambda base: base.sample((n,), generator=generator)
        z = self.carry(
            Mixed(
                draw(self.base_tokens) if tokens is None else flat(tokens, own[0]),
                draw(self.base_points) if points is None else flat(points, own[1]),
            ),
            None if context is None else flat(context, self.context_shape or ()),
            known="tokens" if tokens is not None else None if points is None else "points",
            sampler=sampler,
            generator=generator,
            progress=progress,
        )
        return Mixed(z.tokens.reshape(*full, *own[0]), z.x.reshape(*full, *own[1]))

    def carry(
        self,
        state: Mixed,
        context: Tensor | None = None,
        *,
        start: float = 0.0,
        end: float = 1.0,
        known: Part | None = None,
        fixed: Tensor | None = None,
        sampler: MixedSteps | None = None,
        generator: Generator | None = None,
        progress: bool = False,
    ) -> Mixed:
        """Carry a state from one time to a later one, without gradients.

        Args:
            state: Tokens and points at the start, one leading batch axis each.
            context: Conditions `(n, *context_shape)`.
            start: Time of the state, in [0, 1].
            end: Time at which it is wanted, not before the start.
            known: The part that is data, and stays.
            fixed: Some tokens that are known, boolean, broadcasting to them. The network sees them
                among others of its time; with masks, that is what it has learnt.
            sampler: How steps are taken; the flow's own by default.
            generator: Source of the randomness.
            progress: Show a bar of the steps where there is a terminal.

        Returns:
            The state at the end.

        Raises:
            DomainError: The end lies before the start, a token or point is none of those that may
                be, or a context is missing or not expected.
            ShapeError: Shapes disagree.
            SolverError: The network's velocity is not finite.
        """
        where = "MixedFlow.carry"
        if not 0 <= start <= end <= 1:
            raise DomainError(
                f"{where}: needs 0 <= start <= end <= 1, got start={start} and end={end}; a mixed "
                "flow runs from base to data alone"
            )
        self.expect_state(where, state, context, data=known)
        state = Mixed(state.tokens.long(), state.x)
        fixed = None if fixed is None else expect_flags(where, "fixed", fixed, state.tokens)
        if start == end or not len(state.x):
            return state
        held = HeldPosterior(self.base_tokens, self.path)
        jumps = JumpWalk(held, self.base_tokens, None, fixed, generator, end)
        walk = MixedWalk(
            lambda t, z: self._ask(where, t, z, context, known),
            held,
            None if known == "tokens" else jumps,
            known != "points",
        )
        silent = None if progress else True  # None: silent where there is no terminal
        bar: tqdm[Any] = tqdm(desc="steps", disable=silent, leave=False)
        with torch.no_grad(), bar:
            return (self.sampler if sampler is None else sampler).run(walk, state, start, end, bar)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the weights to one safetensors file, for `cflow.load(path, into=flow)`.

        Raises:
            CheckpointError: The file cannot be written.
        """
        archive.write(path, self.state_dict(), {"recipe": None})

    def expect_state(
        self, where: str, state: Mixed, context: Tensor | None, *, data: Part | None = None
    ) -> None:
        """Raise unless a state and its context fit the flow; see `expect_mixed`."""
        bases = self.base_tokens, self.base_points
        expect_mixed(where, state, *bases, data=data)
        expect_condition(where, context, self.context_shape, len(state.x))

    def _ask(
        self, where: str, t: float, z: Mixed, context: Tensor | None, known: Part | None
    ) -> tuple[Tensor, Tensor]:
        """Ask the network at one time, with that of a known part at 1."""
        times = [1.0 if known == "tokens" else t, 1.0 if known == "points" else t]
        at = torch.tensor(times, dtype=z.x.dtype, device=z.x.device).expand(len(z.x), 2)
        logits, v = self(at, z.tokens, z.x, context)
        if known == "points":
            return logits, v
        bad = ~torch.isfinite(v.reshape(len(v), -1)).all(1)
        if bool(bad.any()):
            raise SolverError(
                f"{where}: the velocity of {int(bad.sum())} of {len(bad)} samples is not finite at "
                f"t={t:g}, the first is number {int(bad.nonzero()[0])}; check the network"
            )
        return logits, v
