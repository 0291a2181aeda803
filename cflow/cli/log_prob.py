"""`cflow log-prob`: the mean log-likelihood of data under a flow, and what kind of number it is."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from torch import Generator, Tensor
from tyro.conf import Positional, arg

from cflow.cli.arrays import read_array, read_context, write_array
from cflow.cli.build import classes_of
from cflow.cli.choices import device_of, placed
from cflow.cli.command import Command
from cflow.cli.exported import opened
from cflow.cli.files import expect_writable, flow_of
from cflow.cli.noise import in_batches
from cflow.cli.points import brought
from cflow.errors import DomainError, ShapeError, expect_finite, expect_positive
from cflow.flow import Flow
from cflow.jump import JumpFlow
from cflow.metrics import bits_per_dim
from cflow.samples import log_probs

__all__ = ["LogProb"]

MEANINGS = {
    "exact": "exact",
    "estimate": "an unbiased estimate, one draw of noise for each point",
    "bound": "a lower bound, so the bits are an upper one; one draw of noise for each point",
}


@dataclass(frozen=True)
class LogProb(Command):
    """Evaluate the log-likelihood of data: its mean, in nats and in bits for each dimension.

    Attributes:
        file: A .safetensors file, a run folder, or an exported log-likelihood.
        data: Points, or tokens, one a row: .npy, .npz or .csv.
        out: A .npy file for the values of all points.
        context: Conditions: a file with one for each point, or one for all, such as 3 or (0.5,1).
        seed: Decides the noise of estimates and bounds.
        project: Bring points to the manifold of the flow, where they lie off it.
        batch: Points that are evaluated together.
        device: Where a flow computes: cpu, cuda.
    """

    EXAMPLE: ClassVar[str] = "cflow log-prob runs/nsf data.npy -o log_prob.npy"

    file: Positional[Path]
    data: Positional[Path]
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    context: str | None = None
    seed: int = 0
    project: bool = False
    batch: int = 1024
    device: str = "cpu"

    def run(self) -> str:
        """Evaluate, write the values where asked, and say their mean."""
        expect_positive("log-prob", batch=self.batch)
        flow = flow_of(self.file)
        x = read_array(self.data)
        if self.out is not None:
            if self.out.suffix != ".npy":
                raise DomainError(f"log-prob: -o takes a .npy file, got {self.out}")
            expect_writable(self.out)
        values, likelihood = self._exported(x) if flow is None else self._under(flow, x)
        if self.out is not None:
            write_array(self.out, values)
        expect_finite("log-prob", "the log-likelihood", values)
        bits = bits_per_dim(values, x.shape[1:])
        written = "" if self.out is None else f"; {self.out}"
        return (
            f"{_mean(values)} nats, {_mean(bits)} bits/dim, over {len(x)} points "
            f"({MEANINGS[likelihood]}){written}"
        )

    def _under(self, flow: Flow | JumpFlow, x: Tensor) -> tuple[Tensor, str]:
        device = device_of(self.device)
        flow = flow.to(device)
        x = _as_points("this flow", x, flow.event_shape, whole=flow.likelihood == "bound")
        x = brought("log-prob", flow, x, project=self.project)
        context = self._context(len(x), flow.context_shape, classes_of(flow))
        x, context = placed(x, flow), None if context is None else placed(context, flow)
        generator = Generator(device).manual_seed(self.seed)
        if isinstance(flow, JumpFlow):
            with torch.no_grad():
                bound = lambda x, context: flow.elbo(x, context, generator=generator).cpu()
                return in_batches(bound, x, context, self.batch), flow.likelihood
        values = log_probs(flow, x, context, batch=self.batch, generator=generator, progress=True)
        return values.cpu(), flow.likelihood

    def _exported(self, x: Tensor) -> tuple[Tensor, str]:
        exported = opened(self.file, "log_prob")
        x = _as_points("this file", x, exported.shape, whole=False)
        context = self._context(len(x), exported.context_shape, 0)
        values = in_batches(exported.call, x, context, self.batch)
        return values, "exact"

    def _context(self, n: int, shape: tuple[int, ...] | None, classes: int) -> Tensor | None:
        if self.context is None:
            return None  # the flow says what it misses
        context = read_context(self.context, shape, classes)
        if len(context) not in (1, n):
            raise ShapeError(
                f"--context: needs one condition, or one for each of {n} points, got {len(context)}"
            )
        return context.expand(n, *context.shape[1:])


def _as_points(where: str, x: Tensor, event_shape: tuple[int, ...], *, whole: bool) -> Tensor:
    """Check the shape of data, and turn whole numbers into floats where no levels are expected."""
    if tuple(x.shape[1:]) != tuple(event_shape):
        wanted = ", ".join(map(str, event_shape))
        raise ShapeError(
            f"log-prob: {where} takes points of shape (n, {wanted}), got {tuple(x.shape)}"
        )
    return x if whole or x.is_floating_point() else x.to(torch.get_default_dtype())


def _mean(values: Tensor) -> str:
    """Write mean and standard error; one value has no error."""
    mean = values.double().mean().item()
    if len(values) < 2:
        return f"{mean:.4f}"
    return f"{mean:.4f} +- {values.double().std().item() / math.sqrt(len(values)):.4f}"
