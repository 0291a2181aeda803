"""One round of teaching: pairs from a teacher, and the training of its copy on them.

folder/reflow.json                     what was asked for
folder/pairs/, real/, held/            pairs, see `cflow.matching.stored`
folder/checkpoint.pt                   the training under way
folder/flow.safetensors                the trained copy, once it is
"""

import copy
from collections.abc import Callable
from collections.abc import Generator as Iteration
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from cflow import archive
from cflow.errors import CheckpointError, DomainError
from cflow.flow import Flow
from cflow.manifold import Euclidean, Geodesics
from cflow.matching import (
    GeodesicPath,
    LinearPath,
    MixedPairs,
    PairedCoupling,
    StoredPairs,
    TeacherPairs,
    TimeLaw,
    VelocityError,
    matching,
    reflow_pairs,
)
from cflow.matching.manifest import agree, digest, digest_of, read_note, spoken, write_note
from cflow.matching.shuffle import hashed
from cflow.ode import Solver
from cflow.train.batches import TrainingData
from cflow.train.loop import CHECKPOINT, Trainer
from cflow.transport.around import around_ode

__all__ = ["Round"]

NOTE = "reflow.json"
WEIGHTS = "flow.safetensors"

Pairs: TypeAlias = tuple[Tensor, ...] | StoredPairs | TeacherPairs


@dataclass(frozen=True, eq=False, kw_only=True)
class Round:
    """Hold the settings of a round; their meaning is told in `reflow` and `distil`.

    Raises:
        DomainError: A setting is out of range.
    """

    where: str
    n: int
    trainer: Callable[..., Trainer]
    context: Tensor | None
    real: Tensor | tuple[Tensor, Tensor] | None
    share: float
    times: TimeLaw
    error: VelocityError
    solver: Solver | None
    online: bool
    held: int | None
    chunk: int
    seed: int
    progress: bool
    number: int = 1

    def __post_init__(self) -> None:
        if self.n < 1 or (self.held is not None and self.held < 0):
            raise DomainError(
                f"{self.where}: n must be positive and held not negative, got n={self.n}, "
                f"held={self.held}"
            )
        if not 0 < self.share <= 1:
            raise DomainError(
                f"{self.where}: share must lie above 0 and at most at 1, got {self.share}; leave "
                "out `real` for none"
            )

    def run(self, flow: Flow, folder: Path | None) -> Flow:
        """Return the trained copy, made now or read back."""
        teacher = flow if self.solver is None else flow.with_solver(self.solver)
        student = copy.deepcopy(flow)
        field = around_ode(self.where, student.transport).ode.field
        if folder is not None and self._begun(folder, teacher) and (folder / WEIGHTS).exists():
            tensors, _ = archive.read(folder / WEIGHTS)
            archive.expect_same_tensors(str(folder / WEIGHTS), student.state_dict(), tensors)
            student.load_state_dict(tensors)
            return student.eval()

        def loss(
            model: Flow,
            x0: Tensor,
            x1: Tensor,
            context: Tensor | None = None,
            *,
            generator: Generator,
        ) -> Tensor:
            ode = around_ode(self.where, model.transport).ode
            flat = isinstance(ode.manifold, Euclidean) or not isinstance(ode.manifold, Geodesics)
            return matching(
                ode.field,
                LinearPath() if flat else GeodesicPath(cast(Geodesics, ode.manifold)),
                PairedCoupling(),
                x1,
                x0=x0,
                context=context,
                times=self.times,
                error=self.error,
                generator=generator,
            )

        data, validation = self._data(teacher, folder)
        if folder is not None:
            write_note(folder / NOTE, {"asked": self._asked(teacher)})
        with _without_dropout(field):
            self.trainer(student, loss, folder=folder).fit(data, validation)
        if folder is not None:
            archive.write(folder / WEIGHTS, student.state_dict(), {"recipe": None})
        return student.eval()

    def _begun(self, folder: Path, teacher: Flow) -> bool:
        """Say whether this round was begun here; raise where something else was."""
        note = read_note(self.where, folder / NOTE)
        if note is not None:
            agree(self.where, folder / NOTE, note["asked"], self._asked(teacher))
            return True
        for name in (CHECKPOINT, WEIGHTS):
            if (folder / name).exists():
                raise CheckpointError(
                    f"{self.where}: {folder / name} belongs to another training, as there is no "
                    f"{NOTE} beside it; choose another folder"
                )
        return False

    def _asked(self, teacher: Flow) -> dict[str, Any]:
        real = self.real if isinstance(self.real, tuple) else (self.real,)
        return {
            "n": self.n,
            "seed": self.seed,
            "teacher": digest_of(teacher),
            "solver": spoken(around_ode(self.where, teacher.transport).ode.solver),
            "times": spoken(self.times),
            "error": spoken(self.error),
            "online": self.online,
            "held": self._held,
            "chunk": self.chunk,
            "context": digest(self.context),
            "data": digest(*real),
            "share": None if self.real is None else self.share,
        }

    @property
    def _held(self) -> int:
        return max(1, self.n // 20) if self.held is None else self.held

    def _data(self, teacher: Flow, folder: Path | None) -> tuple[TrainingData, TrainingData | None]:
        """Return what the copy is trained on, and what it is validated on."""

        def stored(name: str, n: int, context: Tensor | None, data: Tensor | None) -> Pairs:
            return reflow_pairs(
                teacher,
                n,
                folder=None if folder is None else folder / name,
                context=context,
                data=data,
                chunk=self.chunk,
                seed=hashed(f"{self.seed} {self.where} {self.number} {name}"),
                progress=self.progress,
            )

        def pairs(name: str, n: int, context: Tensor | None, data: Tensor | None) -> Pairs:
            if self.online:
                return TeacherPairs(teacher, n, context=context, data=data)
            return stored(name, n, context, data)

        real, own = self.real if isinstance(self.real, tuple) else (self.real, None)
        if real is None:
            training = pairs("pairs", self.n, self.context, None)
        else:
            training = pairs("real", len(real), own, real)
            if self.share < 1:
                made = pairs("pairs", self.n, self.context, None)
                training = MixedPairs(made, training, share=self.share)
        if not self._held:
            return training, None
        context = self.context
        if context is not None:  # a spread of the same conditions, with noise of their own
            rows = torch.linspace(0, len(context) - 1, self._held).round().long()
            context = context[rows.to(context.device)]
        return training, stored("held", self._held, context, None)


@contextmanager
def _without_dropout(module: nn.Module) -> Iteration[None]:
    """Let nothing be dropped for a while."""
    layers = [part for part in module.modules() if isinstance(part, _DropoutNd)]
    shares = [layer.p for layer in layers]
    for layer in layers:
        layer.p = 0.0
    try:
        yield
    finally:
        for layer, p in zip(layers, shares, strict=True):
            layer.p = p
