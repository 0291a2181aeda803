"""Few steps from masks: a student with a label for each step learns what a teacher draws over it.

    p(x' | x_t) = 1/M sum_m prod_i p(x'_i | x_t, m),    fitted to x' ~ teacher from t to t'

A step that draws each token by itself loses what they have in common, whatever it has learned: the
probabilities that smaller steps of a teacher average to are the teacher's own. So a student without
labels (M = 1: self-distillation through time) cannot do better than a teacher that is consistent.
A label m, drawn anew for each sample and step, makes the step a mixture, in which tokens can depend
on each other; it is fitted by maximum likelihood.

On two tokens of four values, 0.925 of them equal, the law of one step is off by 0.68 in total
variation without labels, and by 0.02 to 0.07 with 8 of them. Two steps of the teacher are off by
0.33 and four by 0.17; two of a student that was taught by two halves of each, by 0.16.
Source: Hayakawa et al. (2024), Distillation of discrete diffusion through dimensional correlations,
arXiv 2410.08709; Deschenaux and Gulcehre (2024), Beyond autoregression: fast LLMs via
self-distillation through time, arXiv 2410.21035.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import functional

from cflow.errors import DomainError, ShapeError, expect_tokens
from cflow.jump.draw import Draw
from cflow.jump.elbo import expect_path, log_posterior
from cflow.jump.flow import JumpFlow
from cflow.jump.mixture_steps import MixtureSteps
from cflow.jump.path import MixturePath
from cflow.jump.rates import Posterior
from cflow.jump.sampler import JumpSampler, JumpWalk, SteppingJumps
from cflow.matching.teacher import evaluating
from cflow.samples.options import expect_count
from cflow.typing import Batch, Data

__all__ = ["LatentSteps", "step_distillation"]

DRAW = Draw()
HALVES = MixtureSteps(2)


def step_distillation(
    student: JumpFlow,
    x1: Data,
    context: Tensor | None = None,
    *,
    teacher: JumpFlow,
    steps: int,
    latents: int = 8,
    sampler: JumpSampler = HALVES,
    generator: Generator | None = None,
) -> Batch:
    """Return how surprised a student of few steps is by what a teacher draws over one of them.

        -log 1/M sum_m prod_i p(x'_i | x_t, m),    the product over tokens unmasked from t to t'

    with t one of the times k / steps at random and t' the next, x_t from the path of x1, and x'
    drawn by the teacher. But for a constant its mean is the divergence between both laws of x'.
    The student then takes its steps by `LatentSteps(steps, latents=latents)`, and it can be the
    teacher of the next one, with `sampler=LatentSteps(2, latents=latents)`.

    Args:
        student: Flow from masks. Its network is given, behind the condition if there is any, the
            label m as a one-hot vector: a context of `latents` numbers more than the flow's own.
        x1: Data tokens `(n, *event)`.
        context: Conditions `(n, features)`.
        teacher: Flow from masks, in any mode; it is run in evaluation mode, without gradients.
        steps: Steps that the student will take from 0 to 1.
        latents: Number of labels M; each is asked about in each evaluation of the loss.
        sampler: How the teacher goes from t to t': in two steps by default.
        generator: Source of the randomness.

    Returns:
        Nats per token, `(n,)`.

    Raises:
        DomainError: A base is not of masks alone, the student has no posterior of a mixture path,
            x1 holds no data tokens, or a number is no count.
        ShapeError: Shapes disagree.

    References:
        Hayakawa et al. (2024), arXiv 2410.08709; Deschenaux and Gulcehre (2024), arXiv
        2410.21035.

    Example:
        >>> from functools import partial
        >>> from cflow.base import MaskTokens
        >>> from cflow.jump import NetworkPosterior, TokenMLP
        >>> base = MaskTokens(2, 4)
        >>> teacher = JumpFlow(base, NetworkPosterior(TokenMLP(2, 5, 4), base))
        >>> few = NetworkPosterior(TokenMLP(2, 5, 4, context=8), base)
        >>> student = JumpFlow(base, few, sampler=LatentSteps(2, latents=8))
        >>> loss = partial(step_distillation, teacher=teacher, steps=2, latents=8)
        >>> loss(student, torch.randint(4, (16, 2))).shape, student.sample(5).shape
        (torch.Size([16]), torch.Size([5, 2]))
    """
    expect_count("step_distillation", steps=steps, latents=latents)
    base, path, rates = student.base, expect_path("step_distillation", student.rates), student.rates
    if not (
        base.absorbing
        and teacher.base.absorbing
        and isinstance(rates, Posterior)
        and isinstance(path, MixturePath)
    ):
        raise DomainError(
            "step_distillation: student and teacher need a base of masks, and the student a "
            f"posterior along a MixturePath, got {type(base).__name__}, "
            f"{type(teacher.base).__name__} and {type(rates).__name__} along {type(path).__name__}"
        )
    expect_tokens("step_distillation", x1, base.event_shape, base.vocabulary, masked=True)
    n, mask = len(x1), base.vocabulary
    k = int(torch.randint(steps, (), generator=generator, device=x1.device))
    t = torch.full((n,), k / steps, device=x1.device)
    noise = torch.rand(x1.shape, generator=generator, device=x1.device)
    x = path.sample(torch.full_like(x1, mask), x1, t, noise=noise).x.long()
    with evaluating(teacher):
        y = sampler.sample(
            teacher.rates,
            x,
            context,
            base=teacher.base,
            start=k / steps,
            end=(k + 1) / steps,
            generator=generator,
        )
    label = torch.arange(latents, device=x1.device).repeat_interleave(n)
    every = lambda z: z.repeat(latents, *(1,) * (z.dim() - 1))
    asked = _labelled(None if context is None else every(context), label, latents)
    log_p = log_posterior(rates, every(t), every(x), asked)
    jumped = (x == mask) & (y != mask)
    ends = every(torch.where(jumped, y, 0))
    each = log_p.gather(-1, ends[..., None])[..., 0].reshape(latents, *x.shape)
    joint = torch.where(jumped, each, 0.0).reshape(latents, n, -1).sum(-1)
    return (math.log(latents) - joint.logsumexp(0)) / math.prod(base.event_shape)


@dataclass(frozen=True)
class LatentSteps(SteppingJumps):
    """Step along a mixture path by a posterior that is given a label, new for each step and sample.

    Given the label each token is drawn by itself; over the labels they depend on each other.

    Attributes:
        latents: Number of labels; the network is given a one-hot vector behind its condition.
        draw: How tokens are drawn: temperature, nucleus, precision.

    References:
        Hayakawa et al. (2024), arXiv 2410.08709.

    Example:
        >>> LatentSteps(4, latents=16).steps
        4
    """

    latents: int = 8
    draw: Draw = DRAW

    def step(self, walk: JumpWalk, t: float, t_next: float, x: Tensor) -> Tensor:
        expect_count("LatentSteps", latents=self.latents)
        label = torch.randint(self.latents, (len(x),), generator=walk.generator, device=x.device)
        labelled = replace(walk, context=_labelled(walk.context, label, self.latents))
        return MixtureSteps(1, draw=self.draw).step(labelled, t, t_next, x)


def _labelled(context: Tensor | None, label: Tensor, latents: int) -> Tensor:
    """Return contexts `(n, features + latents)`: conditions, and labels as one-hot vectors."""
    hot = functional.one_hot(label, latents).to(torch.get_default_dtype())
    if context is None:
        return hot
    if context.dim() != 2:
        raise ShapeError(
            "LatentSteps: conditions must be vectors (n, features), as the label goes behind them, "
            f"got {tuple(context.shape)}; give classes as one-hot vectors"
        )
    return torch.cat([context.to(hot), hot], -1)
