"""`cflow export`: a flow as a file that runs where cflow is unknown."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias

import torch
from torch import Generator, Tensor, nn
from tyro.conf import Positional, arg

from cflow.cli.arrays import read_context, rows_of
from cflow.cli.build import classes_of
from cflow.cli.choices import placed, solver_of
from cflow.cli.command import Command
from cflow.cli.files import expect_writable, flow_file, flow_of
from cflow.errors import DomainError
from cflow.flow import Flow
from cflow.jump import JumpFlow
from cflow.ode import FixedStep
from cflow.transport import Chain, Dequantize

if TYPE_CHECKING:
    from cflow.export import Exportable

__all__ = ["Export"]

What: TypeAlias = Literal["sampler", "encoder", "log-prob"]
Format: TypeAlias = Literal["onnx", "pt2", "aoti"]

DRAWS = 512  # solved finely for a calibration
ENDINGS: dict[Format, str] = {"onnx": "onnx", "pt2": "pt2", "aoti": "aoti.pt2"}


@dataclass(frozen=True)
class Export(Command):
    """Write a flow as a file that runs with onnxruntime or with torch alone.

    The file is compared with the flow before the command returns. Run it by `cflow sample` and
    `cflow log-prob`, or without cflow. A flow of grey levels gives shades in [0, 1], not yet
    rounded to levels; one of tokens takes uniform numbers, a few for each token and step.

    Attributes:
        file: A run folder, or a .safetensors file.
        out: Where to write; beside the flow by default.
        format: For onnxruntime; for torch (torch.export); or compiled ahead of time for this
            machine, for torch as well.
        what: Noise to samples, data to noise, or data to log-likelihoods.
        steps: Steps of the solver, for a flow with an ODE, or of the jumps of tokens.
        solver: Name of the solver that takes these steps: euler, midpoint, heun, rk4, ab2, ab3.
        calibrate: Choose the solver, its times and its weights by a fine solve of the flow; the
            steps are then evaluations of the field.
        guidance: Scale of classifier-free guidance, for a flow with an ODE, or tokens, and a
            context.
        context: One condition to build in, such as 3 or a file of one row; without it, a flow with
            a context gives a file that takes it as a second input.
        bfloat16: Keep the weights in half the bytes; what it costs is reported.
        seed: Decides the noise that calibration solves from.
    """

    EXAMPLE: ClassVar[str] = "cflow export runs/cnf --steps 4 --format onnx"

    file: Positional[Path]
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    format: Format = "onnx"
    what: What = "sampler"
    steps: int | None = None
    solver: str | None = None
    calibrate: bool = False
    guidance: float | None = None
    context: str | None = None
    bfloat16: bool = False
    seed: int = 0

    def run(self) -> str:
        """Write, and say how near the file is, how large, and where."""
        from cflow import export  # torch.export is slow to import

        found, flow = flow_file(self.file), flow_of(self.file)
        if found is None or flow is None:
            raise DomainError(f"export: {self.file} is no flow; name a run or a .safetensors file")
        path = found.with_name(self._name()) if self.out is None else self.out
        expect_writable(path)
        flow = _shades(flow)
        labels = _labels(flow) if self.context is None else None
        module = self._module(flow, labels)
        said = _solvers(module) if self.calibrate else ""
        if self.bfloat16:
            module, loss = export.low_precision(module, context=labels)
            said += f"; {loss}"
        write = {
            "onnx": export.export_onnx,
            "pt2": export.export_pt2,
            "aoti": export.export_aoti,
        }[self.format]
        with warnings.catch_warnings():
            # Of torch's writer, where weights are parts of a larger tensor; the parity stands.
            warnings.filterwarnings("ignore", message="No complete tensor found")
            parity = write(module, path, context=labels)
        size = path.stat().st_size
        return f"{self.what}: {size:,} bytes, {parity:.1e} off the flow{said}; {path}"

    def _module(self, flow: Flow | JumpFlow, labels: Tensor | None) -> "Exportable":
        from cflow import export

        if isinstance(flow, JumpFlow):
            if self.what != "sampler" or self.solver or self.calibrate or self.bfloat16:
                raise DomainError(
                    "export: of tokens there is a sampler alone, of --steps; leave out --what, "
                    "--solver, --calibrate and --bfloat16"
                )
            guidance, context = self.guidance, self._context(flow)
            return export.TokenSampler(flow, self.steps, guidance=guidance, context=context)
        if self.calibrate and (self.steps is None or self.solver or self.what != "sampler"):
            raise DomainError(
                "export: --calibrate finds the solver of a sampler; give --steps, and leave out "
                "--solver and --what"
            )
        kinds = {"sampler": export.Sampler, "encoder": export.Encoder, "log-prob": export.LogProb}
        module = kinds[self.what](
            flow,
            solver=solver_of(self.solver, self.steps),
            guidance=self.guidance,
            context=self._context(flow),
        )
        if not self.calibrate or not isinstance(module, export.Sampler) or self.steps is None:
            return module
        if module.context_shape is not None and labels is None:
            raise DomainError("export: --calibrate needs the condition, given by --context")
        generator = Generator().manual_seed(self.seed)
        met = rows_of(labels, DRAWS)
        return module.calibrate(self.steps, context=met, n=DRAWS, generator=generator)

    def _name(self) -> str:
        steps = "" if self.steps is None else f"_{self.steps}"
        return f"{self.what.replace('-', '_')}{steps}.{ENDINGS[self.format]}"

    def _context(self, flow: Flow | JumpFlow) -> Tensor | None:
        """Return the one condition that is built in, or None."""
        if self.context is None:
            return None
        rows = read_context(self.context, flow.context_shape, classes_of(flow))
        if len(rows) != 1:
            raise DomainError(f"export: --context builds in one condition, got {len(rows)} rows")
        return placed(rows[0], flow)


def _shades(flow: Flow | JumpFlow) -> Flow | JumpFlow:
    """Return a flow of grey levels before it rounds to them; any other as it is.

    A rounded shade is either right or a whole level off, so that nothing could be compared.
    """
    if isinstance(flow, JumpFlow):
        return flow
    if not isinstance(flow.transport, Chain) or not isinstance(flow.transport[-1], Dequantize):
        return flow
    shades = Flow(flow.base, flow.transport[:-1], context_shape=flow.context_shape)
    shades.recipe = flow.recipe
    return shades.eval()


def _labels(flow: Flow | JumpFlow) -> Tensor | None:
    """Return labels to trace and compare with, for a flow that takes labels."""
    classes = classes_of(flow)
    return torch.arange(classes) if classes else None


def _solvers(module: nn.Module) -> str:
    """Return what there is to say of the solvers in a module."""
    found = (getattr(part, "solver", None) for part in module.modules())
    return "".join(f"; {type(s).__name__}({s.steps})" for s in found if isinstance(s, FixedStep))
