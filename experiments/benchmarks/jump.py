"""Sampling tokens beside flow_matching's discrete solver.

    python -m experiments.benchmarks.jump                  # some minutes on two cores
    python -m experiments.benchmarks.jump --only sampling  # some figures
    python -m experiments.benchmarks.jump --smoke          # every path, in seconds

The network costs nothing here: it answers with one tensor of logits (theirs: of probabilities, as
their solver wants them), so that what is timed is the solver. Four figures: the time and the memory
of 16 steps at vocabulary 512, length 256, batch 16; the largest tensor made at vocabulary 50257;
and what a run that stops at t = 0.2 leaves unchanged, where the path says 96 %. Two more time
our attention, with and without its gradients, over torch's fused kernel; beside it stands what it
chooses from besides the kernel, the products written out. Times are medians of interleaved rounds;
memory is the peak of all tensors made during a call, counted exactly.
Everything lands in runs/jump_benchmark/report.json.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from cflow.base import MaskTokens, TokenBase, UniformTokens
from cflow.field import PolynomialSchedule
from cflow.jump import Draw, JumpFlow, MixturePath, MixtureSteps, NetworkPosterior
from cflow.nets.multihead import attend, written_out
from cflow.testing.memory import peak_bytes
from experiments.benchmarks import run
from experiments.benchmarks.measure import Row, contest, interleave
from experiments.benchmarks.settings import Settings

PEER = find_spec("flow_matching") is not None
TIME, MEMORY, UNCHANGED = 0.04, 1 / 3, 0.96  # wanted
SQUARE = PolynomialSchedule(2.0)
KERNELS = {"cflow": attend, "written out": written_out, "torch": scaled_dot_product_attention}


def sampling(settings: Settings) -> list[Row]:
    """Time 16 steps from t = 0 to 1, and count their memory."""
    rows = []
    for base, double in ((UniformTokens, False), (MaskTokens, False), (UniformTokens, True)):
        ours, theirs = contestants(settings, base, double=double)
        calls = {"cflow": ours, **({"flow_matching": theirs} if theirs else {})}
        what = f"{base.__name__}{', float64 draws' if double else ''}"
        seconds = interleave(calls, settings.rounds(), warm_up=1)
        bytes_taken = {name: peak_bytes(call) for name, call in calls.items()}
        if theirs is None:
            rows.append(Row(f"16 steps, {what}", sorted(seconds["cflow"])[0], {}, "s"))
            continue
        rows.append(
            contest(f"16 steps, {what}", seconds, "cflow", against="flow_matching", wanted=TIME)
        )
        mine, other = (bytes_taken[name] / 2**20 for name in ("cflow", "flow_matching"))
        rows.append(
            Row(f"memory of these, {what}", mine, {"flow_matching": other}, "MiB", mine / other,
                None, ("<=", MEMORY))
        )  # fmt: skip
    return rows


def large(settings: Settings) -> list[Row]:
    """Find the largest tensor at the vocabulary of a language model, beside the logits."""
    batch, length, vocabulary = settings.size((4, 64, 50_257), (2, 8, 101))
    base = UniformTokens(length, vocabulary)
    logits = torch.randn(batch, length, vocabulary)
    flow = JumpFlow(base, NetworkPosterior(lambda t, x, context: logits, base))
    taken = peak_bytes(lambda: flow.sample(batch, sampler=MixtureSteps(16)))
    share = taken / (logits.numel() * logits.element_size())
    return [
        Row(f"memory beside the logits, vocabulary {vocabulary}, in units of them", share, {}, "",
            share, None, ("<=", 1.0), ("the last of 16 steps moves nearly half of a mixture's "
            "tokens, whose rows are drawn from together",))
    ]  # fmt: skip


def stopped(settings: Settings) -> list[Row]:
    """Stop at t = 0.2 along kappa = t^2, and count the tokens that have not moved."""
    base = UniformTokens(256, 128)
    batch = settings.size(64, 4)
    x0 = base.sample((batch,))
    logits = torch.zeros(batch, 256, 128)
    rates = NetworkPosterior(lambda t, x, context: logits, base, MixturePath(SQUARE))
    x = MixtureSteps(16).sample(rates, x0, base=base, end=0.2)
    mine, found = (x == x0).double().mean().item(), {}
    if PEER:
        solver = peer(logits.softmax(-1), base)
        grid = torch.tensor([0.0, 0.2])
        there = solver.sample(x0, step_size=0.2 / 16, time_grid=grid)
        found["flow_matching"] = (there == x0).double().mean().item()
    return [
        Row("share unchanged at t = 0.2, kappa = t^2 (0.96, and 1/128 of the jumps)", mine, found,
            "", abs(mine - UNCHANGED - 0.04 / 128), None, ("<=", 0.01))
    ]  # fmt: skip


def attention(settings: Settings) -> list[Row]:
    """Time attention and its gradients at 20, 64 and 256 places, over torch's fused kernel."""
    rows = []
    for batch, places in ((256, 20), (64, 64), (16, 256)):
        for dtype in (torch.bfloat16, torch.float32):
            shape = (settings.size(batch, 1), 4, settings.size(places, 3), 64)
            parts = [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3)]
            calls = {name: partial(gradients, kernel, parts) for name, kernel in KERNELS.items()}
            seconds = interleave(calls, settings.rounds())
            what = f"attention and its gradients, {places} places, {str(dtype)[6:]}"
            rows.append(contest(what, seconds, "cflow", against="torch", wanted=1.0))
    return rows


def alone(settings: Settings) -> list[Row]:
    """Time attention without gradients, where samples are drawn."""
    rows = []
    for batch, places, size in ((500, 20, 16), (64, 64, 64), (500, 101, 16), (16, 256, 64)):
        shape = (settings.size(batch, 1), 4, settings.size(places, 3), size)
        parts = [torch.randn(shape) for _ in range(3)]
        calls = {name: partial(kernel, *parts) for name, kernel in KERNELS.items()}
        seconds = interleave(calls, settings.rounds())
        what = f"attention alone, {places} places"
        rows.append(contest(what, seconds, "cflow", against="torch", wanted=1.0))
    return rows


def gradients(kernel: Callable[..., Tensor], parts: list[Tensor]) -> None:
    kernel(*parts).sum().backward()


def contestants(
    settings: Settings, law: type[UniformTokens | MaskTokens], *, double: bool
) -> tuple[Callable[[], Any], Callable[[], Any] | None]:
    """Return both solvers, ready to run from the same tokens with the same answers."""
    batch, length, vocabulary = settings.size((16, 256, 512), (2, 8, 11))
    base: TokenBase = law(length, vocabulary)
    dtype = torch.float64 if double else torch.float32
    logits = torch.randn(batch, length, vocabulary)
    x0 = base.sample((batch,))
    rates = NetworkPosterior(lambda t, x, context: logits, base, MixturePath(SQUARE))
    sampler = MixtureSteps(16, draw=Draw(dtype=dtype if double else None))
    ours = lambda: sampler.sample(rates, x0, base=base)
    if not PEER:
        return ours, None
    padded = torch.nn.functional.pad(logits.softmax(-1), (0, base.states - vocabulary))
    solver = peer(padded, base)
    theirs = lambda: solver.sample(x0, step_size=1 / 16, dtype_categorical=dtype)
    return ours, theirs


def peer(probabilities: Tensor, base: TokenBase) -> Any:
    """Return flow_matching's solver for a model that always answers with these probabilities."""
    from flow_matching.path import MixtureDiscreteProbPath
    from flow_matching.path.scheduler import PolynomialConvexScheduler
    from flow_matching.solver import MixtureDiscreteEulerSolver
    from flow_matching.utils import ModelWrapper

    class Answer(ModelWrapper):
        def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
            return probabilities

    path = MixtureDiscreteProbPath(PolynomialConvexScheduler(2.0))
    return MixtureDiscreteEulerSolver(Answer(nn.Identity()), path, base.states)


FIGURES = {
    "sampling": sampling,
    "large": large,
    "stopped": stopped,
    "attention": attention,
    "alone": alone,
}
PACKAGES = ("torch", *(("flow_matching",) if PEER else ()))


def main(settings: Settings) -> run.Report:
    return run.measure("jump", FIGURES, settings, packages=PACKAGES)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
