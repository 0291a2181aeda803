"""`cflow sample`: points from a saved flow, a run, or an exported file, as numbers or a picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from torch import Generator, Tensor
from tyro.conf import Positional, arg

from cflow.cli.arrays import read_context, rows_of, write_array
from cflow.cli.build import classes_of
from cflow.cli.choices import device_of, guided_by, placed, solved_by
from cflow.cli.command import Command
from cflow.cli.exported import opened
from cflow.cli.files import expect_writable, flow_of
from cflow.cli.noise import in_batches, read_noise, standard_noise
from cflow.cli.pictures import expect_drawable, picture
from cflow.cli.tokens import tokens
from cflow.errors import DomainError, expect_positive
from cflow.flow import Flow
from cflow.jump import JumpFlow

__all__ = ["Sample"]


@dataclass(frozen=True)
class Sample(Command):
    """Draw samples from a saved flow, a run folder or an exported file.

    An exported file needs onnxruntime, or torch alone. It starts from standard noise, normal or
    uniform, or from that of a file; a seed gives a flow of points and its exported sampler the
    same. Tokens are whole numbers.

    Attributes:
        file: A .safetensors file, a run folder, or an exported sampler.
        number: How many; by default one for each row of noise or context, or 1000.
        out: Where they go: .npy for numbers, .png for a picture of points in the plane or images.
        steps: Steps of the solver of a flow with an ODE, or of the jumps of tokens; by default its
            own.
        solver: Name of the solver that takes these steps: euler, midpoint, heun, rk4, ab2, ab3.
        guidance: Scale of classifier-free guidance, for a flow with an ODE, or tokens, and a
            context.
        context: Conditions, taken in turn: a file, or one of them such as 3 or (0.5,1).
        noise: A file of noise to start from, in place of the seed.
        seed: Decides the noise.
        batch: Points that are carried together.
        device: Where a flow computes: cpu, cuda.
    """

    EXAMPLE: ClassVar[str] = "cflow sample runs/nsf -n 1000 -o samples.png"

    file: Positional[Path]
    number: Annotated[int | None, arg(aliases=["-n"])] = None
    out: Annotated[Path, arg(aliases=["-o"])] = Path("samples.npy")
    steps: int | None = None
    solver: str | None = None
    guidance: float | None = None
    context: str | None = None
    noise: Path | None = None
    seed: int = 0
    batch: int = 1024
    device: str = "cpu"

    def run(self) -> str:
        """Draw, write, and say what lies where."""
        drawn = self.out.suffix == ".png"
        if not drawn and self.out.suffix != ".npy":
            raise DomainError(f"sample: -o takes a .npy or a .png file, got {self.out}")
        expect_positive("sample", batch=self.batch)
        if self.number is not None:
            expect_positive("sample", number=self.number)
        flow = flow_of(self.file)
        expect_writable(self.out)
        x = self._drawn(flow)
        (picture if drawn else write_array)(self.out, x)
        return f"{len(x)} samples of shape {tuple(x.shape[1:])}; {self.out}"

    def _drawn(self, flow: Flow | JumpFlow | None) -> Tensor:
        if flow is None:
            return self._exported()
        return self._tokens(flow) if isinstance(flow, JumpFlow) else self._from(flow)

    def _from(self, flow: Flow) -> Tensor:
        if self.out.suffix == ".png":
            expect_drawable(flow.event_shape)
        device = device_of(self.device)
        given = self._context(flow.context_shape, classes_of(flow))
        flow = guided_by(solved_by(flow, self.solver, self.steps), self.guidance).to(device)
        noise = None if self.noise is None else read_noise(self.noise, flow.base.event_shape)
        n = self._count(noise, given)
        context = rows_of(given, n)
        context = None if context is None else placed(context, flow)
        generator = Generator(device).manual_seed(self.seed)
        with torch.no_grad():
            x0 = flow.base.sample((n,), context, generator=generator) if noise is None else noise
            return in_batches(
                lambda x0, context: flow.push(x0, context, generator=generator).cpu(),
                placed(x0, flow),
                context,
                self.batch,
            )

    def _tokens(self, flow: JumpFlow) -> Tensor:
        if self.out.suffix == ".png":
            expect_drawable(flow.event_shape)
        if self.solver is not None or self.noise is not None:
            raise DomainError(
                "sample: tokens have no solver, and are drawn as they go; leave out --solver and "
                "--noise"
            )
        device = device_of(self.device)
        given = self._context(flow.context_shape, classes_of(flow))
        n = self._count(None, given)
        return tokens(
            flow.to(device),
            n,
            rows_of(given, n),
            steps=self.steps,
            guidance=self.guidance,
            batch=self.batch,
            generator=Generator(device).manual_seed(self.seed),
        )

    def _exported(self) -> Tensor:
        if any(option is not None for option in (self.steps, self.solver, self.guidance)):
            raise DomainError(
                "sample: steps, solver and guidance of an exported file are part of it; leave them "
                "out, or export the flow anew"
            )
        exported = opened(self.file, "sampler")
        if self.out.suffix == ".png":
            expect_drawable(exported.data_shape)
        given = self._context(exported.context_shape, 0)
        noise = None if self.noise is None else read_noise(self.noise, exported.shape)
        n = self._count(noise, given)
        if noise is None:
            law = exported.file.description["base"]
            noise = standard_noise(law, n, exported.shape, self.seed)
        return in_batches(exported.call, noise, rows_of(given, n), self.batch)

    def _context(self, shape: tuple[int, ...] | None, classes: int) -> Tensor | None:
        if self.context is not None:
            return read_context(self.context, shape, classes)
        if shape is not None:
            labels = f"labels 0 .. {classes - 1}" if classes else "class labels"
            what = f"conditions of shape {shape}" if shape else labels
            raise DomainError(f"sample: this flow needs {what}; give them by --context")
        return None

    def _count(self, noise: Tensor | None, context: Tensor | None) -> int:
        """Return how many samples are asked for."""
        if noise is None:
            given = 1000 if context is None or len(context) == 1 else len(context)
            return given if self.number is None else self.number
        if self.number not in (None, len(noise)):
            raise DomainError(
                f"sample: -n {self.number} does not go with {len(noise)} rows of noise; leave it "
                "out"
            )
        return len(noise)
