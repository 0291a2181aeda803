"""Rounds of reflow, and distillation to a few steps: a flow taught by itself.

    round r:  pairs (x0, x1) from the flow of round r - 1;  its copy is matched on them

Over the rounds the paths grow straight and no convex transport cost rises; a distilled flow is
right at the times of its steps alone.

Source: Liu et al. (2023), Flow straight and fast, arXiv 2209.03003, sections 2 and 3; Lee et al.
(2024), Improving the training of rectified flows, arXiv 2405.20320.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from cflow.errors import DomainError
from cflow.flow import Flow
from cflow.matching import (
    FeatureError,
    SquaredError,
    StepTimes,
    TimeLaw,
    UniformTimes,
    VelocityError,
)
from cflow.ode import Euler, Solver
from cflow.train.loop import Trainer
from cflow.train.round import Round
from cflow.train.schedule import CosineDecay

__all__ = ["distil", "reflow"]

UNIFORM = UniformTimes()
SQUARED = SquaredError()
TRAINER = partial(
    Trainer,
    steps=2000,
    lr=5e-4,
    schedule=CosineDecay(warmup=100, final=0.01),
    clip=1.0,
    ema=0.999,
)
"""Makes the trainer of a round from a model, a loss and a folder."""


def reflow(
    flow: Flow,
    n: int,
    *,
    rounds: int = 1,
    folder: str | os.PathLike[str] | None = None,
    trainer: Callable[..., Trainer] = TRAINER,
    context: Tensor | None = None,
    real: Tensor | tuple[Tensor, Tensor] | None = None,
    share: float = 0.5,
    times: TimeLaw = UNIFORM,
    error: VelocityError = SQUARED,
    solver: Solver | None = None,
    online: bool = False,
    held: int | None = None,
    chunk: int = 4096,
    seed: int = 0,
    progress: bool = True,
) -> list[Flow]:
    """Straighten a flow: in each round a copy of the last one learns the pairs that that one makes.

    On a manifold straight paths are geodesics.

    With a folder everything is kept, and the same call goes on where an earlier one was killed: in
    the midst of making pairs, of a training, or between rounds. A finished round is read back; more
    rounds may be asked for later.

    Args:
        flow: A trained flow with exactly one ODE, by itself or in a chain; it stays as it is.
        n: Pairs that are made for each round, or make an epoch of an online teacher.
        rounds: How often.
        folder: Where pairs and checkpoints go; None to keep all in memory.
        trainer: Called as `trainer(model, loss, folder=folder)`: `partial(Trainer, steps=..., ...)`
            or a function, where an optimiser is to be made for the model.
        context: Conditions of the pairs, `(n, *context_shape)`.
        real: Data `(m, *event_shape)`, or a tuple of them and their conditions: pairs that the
            last flow makes by pulling it back are mixed in.
        share: Share of these in each batch, where there are any, above 0 and at most 1; with 1 no
            pairs are made from noise, but for those that are held out.
        times: The law of the training's times.
        error: What is minimised, see `cflow.matching.error`.
        solver: How pairs are solved; by default as each flow solves itself.
        online: Make fresh pairs for each batch instead, and store none.
        held: Further pairs for validation, 0 for none; n / 20 by default.
        chunk: Pairs that are solved together.
        seed: Decides the noise of all pairs.
        progress: Show bars of the pairs where there is a terminal.

    Returns:
        The flow of each round, in evaluation mode, its dropout as in `flow` though it was trained
        without: pairs made by a field are to be fitted, not smoothed.

    Raises:
        DomainError: An option is out of range, there is not exactly one ODE, or the flow wants a
            context or takes none.
        ShapeError: Context or data have another shape.
        CheckpointError: The folder holds other work, or damaged files, or cannot be written.
        SolverError: A solve failed.
        TrainingError: A loss was not finite.

    References:
        Liu et al. (2023), arXiv 2209.03003, algorithm 1; Lee et al. (2024), arXiv 2405.20320, for
        errors, times and data.

    Example:
        >>> from cflow import recipes
        >>> flow = recipes.cnf(2, hidden_features=(8,), solver=Euler(4))
        >>> quick = partial(Trainer, steps=2, batch=32)
        >>> len(reflow(flow, 100, rounds=2, trainer=quick, progress=False))
        2
    """
    if rounds < 1:
        raise DomainError(f"reflow: rounds must be at least 1, got {rounds}")
    job = Round(
        where="reflow",
        n=n,
        trainer=trainer,
        context=context,
        real=real,
        share=share,
        times=times,
        error=error,
        solver=solver,
        online=online,
        held=held,
        chunk=chunk,
        seed=seed,
        progress=progress,
    )
    flows: list[Flow] = []
    for k in range(1, rounds + 1):
        place = None if folder is None else Path(folder) / f"round_{k}"
        flows.append(replace(job, number=k).run(flows[-1] if flows else flow, place))
    return flows


def distil(
    flow: Flow,
    n: int,
    *,
    steps: int = 1,
    reverse: bool = False,
    folder: str | os.PathLike[str] | None = None,
    trainer: Callable[..., Trainer] = TRAINER,
    context: Tensor | None = None,
    real: Tensor | tuple[Tensor, Tensor] | None = None,
    share: float = 0.5,
    error: VelocityError = SQUARED,
    solver: Solver | None = None,
    online: bool = False,
    held: int | None = None,
    chunk: int = 4096,
    seed: int = 0,
    progress: bool = True,
) -> Flow:
    """Teach a copy of a flow to jump from end to end of its pairs in a few Euler steps.

    Best after `reflow`, whose paths are nearly straight already.

    Args:
        flow: The flow, teacher and beginning, with exactly one ODE; it stays as it is.
        n: Pairs that are made, or make an epoch of an online teacher.
        steps: Euler steps, so evaluations of the field, of the result.
        reverse: Teach its pull instead of its push: fast encoding. Its push is then good for
            nothing, and pairs from data (`real`, `share=1.0`) are those it will meet.
        folder: Where pairs and checkpoint go; the same call goes on there after a kill.
        trainer: As for `reflow`.
        context: Conditions of the pairs, `(n, *context_shape)`.
        real: Data, or a tuple of data and conditions, whose pairs are mixed in.
        share: Share of these in each batch, above 0 and at most 1.
        error: What is minimised, see `cflow.matching.error`.
        solver: How pairs are solved; by default as the flow solves itself.
        online: Make fresh pairs for each batch instead, and store none.
        held: Further pairs for validation, 0 for none; n / 20 by default.
        chunk: Pairs that are solved together.
        seed: Decides the noise of all pairs.
        progress: Show bars of the pairs where there is a terminal.

    Returns:
        The distilled flow with the solver `Euler(steps)`, in evaluation mode. As no recipe builds
        it, `save` writes its weights alone, for `cflow.load(path, into=...)`.

    Raises:
        DomainError: As for `reflow`; or a feature error in reverse, which is zero at the data.
        ShapeError: As for `reflow`, like all that follow.
        CheckpointError: The folder holds other work.
        SolverError: A solve failed.
        TrainingError: A loss was not finite.

    References:
        Liu et al. (2023), arXiv 2209.03003, section 2.

    Example:
        >>> from cflow import recipes
        >>> flow = recipes.cnf(2, hidden_features=(8,), solver=Euler(4))
        >>> quick = partial(Trainer, steps=2, batch=32)
        >>> fast = distil(flow, 100, steps=2, trainer=quick, progress=False)
        >>> fast.transport.solver
        Euler(steps=2)
    """
    if reverse and isinstance(error, FeatureError):
        raise DomainError(
            "distil: a feature error compares points at the data, where a pull begins; take "
            "SquaredError or PseudoHuber in reverse"
        )
    job = Round(
        where="distil",
        n=n,
        trainer=trainer,
        context=context,
        real=real,
        share=share,
        times=StepTimes(steps, reverse),
        error=error,
        solver=solver,
        online=online,
        held=held,
        chunk=chunk,
        seed=seed,
        progress=progress,
    )
    fast = job.run(flow, None if folder is None else Path(folder))
    return fast.with_solver(Euler(steps)).eval()
