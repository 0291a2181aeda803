"""Fit a flow to points of a manifold, in two ways that cost the same.

    ours:   base = Parzen windows of the training points, 1.5 times as wide; target = the points
            themselves and draws of the windows, n to 1000; flow matching along geodesics between
            optimally coupled draws; the last weights, averaged
    plain:  base = the uniform law; target = the training points; the same without coupling; the
            weights of the best validation likelihood, averaged

Both have one field, batch and number of steps. The windows are what makes up for few points: their
shapes, round and stretched along the points around, are weighed by how well kernels about other
points foretell those left out. They take the place of early stopping, for which a few held-out
blocks are too few: they prefer another moment than the next blocks do.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from cflow import Flow
from cflow.base import Base, ManifoldUniform, ParzenWindows
from cflow.field import Field
from cflow.manifold import Compact
from cflow.matching import (
    Coupling,
    GeodesicCost,
    GeodesicPath,
    IndependentCoupling,
    OTCoupling,
    matching,
)
from cflow.ode import RK4
from cflow.train import CosineDecay, Trainer
from cflow.transport import ODE

__all__ = ["Budget", "Fitted", "Shapes", "ours", "plain", "test_nll", "windows"]

CHUNK = 500  # points whose likelihood is asked together


@dataclass(frozen=True)
class Budget:
    """What a fit may cost."""

    steps: int = 4000  # optimiser steps
    batch: int = 256
    lr: float = 1e-3
    validations: int = 12
    validated: int = 500  # points, at most
    solver_steps: int = 12  # of RK4
    seed: int = 0


@dataclass(frozen=True)
class Shapes:
    """Radii of the kernels, in radians."""

    round: tuple[float, ...]
    stretched: tuple[float, ...]
    widened: float = 1.5
    least: float = 0.002  # weight of a shape below which it is dropped
    weighed: int = 1000  # training points that weigh the shapes, beside the validation points
    smoothed: int = 1000  # as many points as this are drawn as often as the windows


class Fitted(NamedTuple):
    """Hold a trained flow and the seconds of its training."""

    flow: Flow
    seconds: float


def windows(
    space: Compact,
    train: Tensor,
    validation: Tensor,
    shapes: Shapes,
    *,
    groups: tuple[Tensor, Tensor] | None,
    seed: int,
) -> ParzenWindows:
    """Return Parzen windows whose shapes are weighed by points that are left out.

    Those are the validation points and, where groups of training and validation points are given,
    training points, each foretold by the kernels of other groups.
    """
    law = ParzenWindows(space, train, round=shapes.round, stretched=shapes.stretched, uniform=True)
    if groups is None:
        law.fit(validation)
        return law
    generator = Generator().manual_seed(seed)
    some = torch.randperm(len(train), generator=generator)[: shapes.weighed]
    left_out = torch.cat([train[some], validation])
    law.fit(left_out, groups=torch.cat([groups[0][some], groups[1]]), own=groups[0])
    return law


def ours(
    space: Compact, field: Field, law: ParzenWindows, shapes: Shapes, budget: Budget
) -> Fitted:
    """Fit the flow from widened windows to the points and the windows."""
    base = law.widened(shapes.widened, least=shapes.least)
    target = law.widened(1.0, least=shapes.least)
    share = len(law.centres) / (len(law.centres) + shapes.smoothed)

    def drawn(rows: Tensor, generator: Generator | None) -> Tensor:
        kept = round(share * len(rows))
        return torch.cat([rows[:kept], target.sample((len(rows) - kept,), generator=generator)])

    coupling = OTCoupling(cost=GeodesicCost(space))
    return _fit(space, field, base, drawn, coupling, law.centres, None, budget)


def plain(
    space: Compact, field: Field, train: Tensor, validation: Tensor, budget: Budget
) -> Fitted:
    """Fit the flow from the uniform law to the points, without coupling."""
    base = ManifoldUniform(space, tuple(train.shape[1:]))
    drawn = lambda rows, generator: rows
    return _fit(space, field, base, drawn, IndependentCoupling(), train, validation, budget)


@torch.no_grad()
def test_nll(law: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Return the negative log-likelihood of points, in nats."""
    return -torch.cat([law(part).double() for part in x.split(CHUNK)]).mean().item()


def _fit(
    space: Compact,
    field: Field,
    base: Base,
    drawn: Callable[[Tensor, Generator | None], Tensor],
    coupling: Coupling,
    train: Tensor,
    validation: Tensor | None,
    budget: Budget,
) -> Fitted:
    flow = Flow(base, ODE(field, RK4(budget.solver_steps), manifold=space))
    path = GeodesicPath(space)

    def loss(model: nn.Module, rows: Tensor, *, generator: Generator) -> Tensor:
        assert isinstance(model, Flow)
        if not model.training:
            return -model.log_prob(rows)
        x1 = drawn(rows, generator)
        x0 = model.base.sample((len(x1),), generator=generator)
        return matching(field_of(model), path, coupling, x1, x0=x0, generator=generator)

    trainer = Trainer(
        flow,
        loss,
        steps=budget.steps,
        batch=budget.batch,
        lr=budget.lr,
        schedule=CosineDecay(warmup=min(100, budget.steps // 10), final=0.02),
        ema=0.999,
        validate_every=max(1, budget.steps // budget.validations),
        seed=budget.seed,
        progress=False,
    )
    start = time.monotonic()
    trainer.fit(train, None if validation is None else validation[: budget.validated])
    return Fitted(flow.eval(), time.monotonic() - start)


def field_of(flow: Flow) -> Field:
    """Return the field of a flow that is one ODE."""
    assert isinstance(flow.transport, ODE)
    return flow.transport.field
