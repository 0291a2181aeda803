"""The problems of the study: two-dimensional pairs, the 8 x 8 digits, MNIST.

A problem says where points start and end, which networks carry them, and how far samples are from
the data. Everything else is the same for all of them, see `study.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from cflow import Flow, State, recipes
from cflow.base import Base, Gaussian
from cflow.data import digits, mnist, toy
from cflow.field import (
    Field,
    FlowMap,
    FourierTime,
    MLPField,
    NetworkFlowMap,
    SinusoidalTime,
    SpanTime,
    UNetField,
)
from cflow.metrics import sliced_wasserstein, wasserstein
from cflow.transport import Affine, Chain

Draw = Callable[..., Tensor]
LEVELS = 17  # grey levels of the 8 x 8 digits


@dataclass(frozen=True)
class Sizes:
    """How long everything is trained, and on what; times are of one core."""

    steps: int  # optimiser steps of flow matching
    reflow_steps: int
    distil_steps: int
    mean_steps: int
    layer_steps: int
    pairs: int  # made for each reflow
    distil_pairs: int
    batch: int
    lr: float
    distil_lr: float
    mean_lr: float
    tested: int  # samples in one distance
    repeats: int = 1  # distances that are averaged
    calibrated: int = 1024  # draws to calibrate with
    paths: int = 1024  # paths whose cost and straightness are measured
    path_steps: int = 400  # of Euler's method along them; at 100 it takes 2 per cent off the cost
    optimal: int = 0  # optimal pairs that are made once; 0 to pair within each batch
    solved: int = 2048  # points that are paired together
    rounds: int = 2  # of reflow
    teacher_steps: int = 20  # of Heun's method that make pairs
    seconds: float | None = None  # training time of each model in place of its steps


@dataclass(frozen=True)
class Problem:
    """One pair of laws.

    Attributes:
        base: The law of the starts.
        fresh: Draws ends `(n, generator)`, as flow matching sees them.
        field: Makes the velocity network.
        flow_map: Makes that of average velocities.
        layers: Makes a layer flow from base to ends, set by points of the data; None where the
            density of the base, which maximum likelihood needs, is not known.
        distance: Of samples (as `finish` makes them) from held-out data, for a seed.
        floor: The same distance of other held-out data.
        finish: From the end of the flow to what is compared.
    """

    name: str
    base: Base
    fresh: Draw
    field: Callable[[], Field]
    flow_map: Callable[[], FlowMap]
    layers: Callable[[Tensor], Flow] | None
    distance: Callable[[Tensor, int], float]
    floor: Callable[[int], float]
    sizes: Sizes
    unit: str
    finish: Callable[[Tensor], Tensor] = lambda x: x
    event: tuple[int, ...] = (2,)


class Law(Base):
    """A two-dimensional law to start from, with its density where there is one."""

    def __init__(self, draw: Draw, log_prob: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__(2)
        self._draw, self._log_prob = draw, log_prob

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        return self._draw(math.prod(shape), generator=generator).reshape(*shape, 2)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        assert self._log_prob is not None, "layers are trained where the density is known"
        return self._log_prob(x)


LAWS: dict[str, tuple[Draw, Callable[[Tensor], Tensor] | None]] = {
    "gaussian": (toy.gaussian, Gaussian(2).log_prob),
    "8 gaussians": (toy.eight_gaussians_wide, toy.eight_gaussians_wide_log_prob),
    "moons": (toy.moons_wide, None),
    "scurve": (toy.scurve, None),
}
PAIRS = (
    "8 gaussians to moons",
    "moons to 8 gaussians",
    "gaussian to 8 gaussians",
    "gaussian to moons",
    "gaussian to scurve",
)
PAIR_SIZES = Sizes(
    steps=6000, reflow_steps=5000, distil_steps=10_000, mean_steps=10_000, layer_steps=1500,
    pairs=20_000, distil_pairs=60_000, batch=256, lr=3e-3, distil_lr=2e-3, mean_lr=4e-3,
    tested=1024, optimal=40_960, paths=4096, path_steps=1000,
)  # fmt: skip


def pair(name: str, sizes: Sizes = PAIR_SIZES) -> Problem:
    """Return a problem in the plane; distances are W2, exact, between fresh points."""
    first, last = name.split(" to ")
    (source, density), (target, _) = LAWS[first], LAWS[last]
    base = Law(source, density)
    hidden, waves = (128,) * 3, FourierTime(4)

    def layers(x: Tensor) -> Flow:
        core = recipes.nsf(
            2, kind="coupling", transforms=8, bins=16, hidden_features=(64, 64),
            fast="sample",
        )  # fmt: skip
        spread = base.sample((1024,), generator=Generator().manual_seed(0)).std()
        unit = Affine(1 / spread)  # splines reach as far as they do
        flow = Flow(base, Chain(unit, recipes.standardized(core).transport))
        flow.initialize(x)
        return flow

    def fresh(n: int, *, generator: Generator) -> Tensor:
        return target(n, generator=generator)

    def held(seed: int) -> tuple[Tensor, Tensor]:
        generator = Generator().manual_seed(7000 + seed)
        return fresh(sizes.tested, generator=generator), fresh(sizes.tested, generator=generator)

    return Problem(
        name,
        base,
        fresh,
        field=lambda: MLPField(2, hidden_features=hidden, time=waves),
        flow_map=lambda: NetworkFlowMap(
            MLPField(2, hidden_features=hidden, time=SpanTime(waves, FourierTime(4)))
        ),
        layers=layers if density is not None else None,
        distance=lambda x, seed: wasserstein(x, held(seed)[0], order=2).item(),
        floor=lambda seed: wasserstein(*held(seed), order=2).item(),
        sizes=sizes,
        unit="W2",
    )


DIGIT_SIZES = Sizes(
    steps=1800, reflow_steps=1000, distil_steps=1500, mean_steps=3000, layer_steps=700,
    pairs=12_000, distil_pairs=12_000, batch=256, lr=4e-3, distil_lr=1e-3, mean_lr=1e-3,
    tested=200, repeats=8,
)  # fmt: skip


def eight_by_eight(sizes: Sizes = DIGIT_SIZES) -> Problem:
    """Return the 8 x 8 digits as standardised logits; sliced W2 of grey levels in [0, 1]."""
    train, _, test = digits()
    hidden, waves = (384,) * 4, FourierTime(8)

    def network(time: FourierTime | SpanTime, dropout: float) -> Field:
        return MLPField(64, hidden_features=hidden, time=time, residual=True, dropout=dropout)

    whole = recipes.images(recipes.cnf(64, hidden_features=(8,)), (8, 8), levels=LEVELS)
    whole.initialize(train)
    assert isinstance(whole.transport, Chain)
    ends = whole.transport[1:].eval()  # standardised logits to integers

    def fresh(n: int, *, generator: Generator) -> Tensor:
        rows = torch.randint(len(train), (n,), generator=generator)
        return ends.pull(State(train[rows]), generator=generator).x

    def layers(x: Tensor) -> Flow:
        return recipes.realnvp(
            64, transforms=12, hidden_features=(256, 256), bound=2.0, dropout=0.4, fast="sample"
        )

    def mean_distance(x: Tensor | None) -> float:
        values = []
        for k in range(sizes.repeats):
            order = torch.randperm(len(test), generator=Generator().manual_seed(k))
            halves = (test[order[: sizes.tested]] / (LEVELS - 1)).float(), None
            other = test[order[sizes.tested :]] / (LEVELS - 1) if x is None else None
            if x is not None:
                other = x[k * sizes.tested : (k + 1) * sizes.tested]
            assert other is not None
            generator = Generator().manual_seed(k)
            values.append(sliced_wasserstein(halves[0], other.float(), generator=generator))
        return torch.stack(values).mean().item()

    return Problem(
        "digits",
        Gaussian(64),
        fresh,
        field=lambda: network(waves, 0.2),
        # Slow waves: with eight frequencies the derivative along time made the training unstable.
        flow_map=lambda: NetworkFlowMap(network(SpanTime(FourierTime(2), FourierTime(2)), 0.0)),
        layers=layers,
        distance=lambda x, seed: mean_distance(x),
        floor=lambda seed: mean_distance(None),
        sizes=sizes,
        unit="sliced W2",
        finish=lambda x: ends.push(State(x)).x / (LEVELS - 1),
        event=(64,),
    )


MNIST_SIZES = Sizes(
    steps=10**9, reflow_steps=10**9, distil_steps=10**9, mean_steps=10**9, layer_steps=10**9,
    pairs=4000, distil_pairs=4000, batch=64, lr=1e-3, distil_lr=1e-3, mean_lr=1e-3,
    tested=500, calibrated=64, paths=64, path_steps=50, rounds=1, teacher_steps=10,
    seconds=300.0,
)  # fmt: skip


def twenty_eight(sizes: Sizes = MNIST_SIZES) -> Problem:
    """Return MNIST in [-1, 1]; sliced W2 of grey levels in [0, 1] to official test images."""
    train, test = mnist()
    shape = (1, 28, 28)

    def network(time: SpanTime | None) -> UNetField:
        return UNetField(shape, width=16, blocks=1, time_scale=100.0, time=time)

    def fresh(n: int, *, generator: Generator) -> Tensor:
        rows = torch.randint(len(train.images), (n,), generator=generator)
        noise = torch.rand(n, *shape, generator=generator)
        return (train.images[rows] + noise) / 128 - 1

    def grey(images: Tensor) -> Tensor:
        return images.float() / 255

    def held(seed: int) -> tuple[Tensor, Tensor]:
        order = torch.randperm(len(test.images), generator=Generator().manual_seed(seed))
        first, second = order[: sizes.tested], order[sizes.tested : 2 * sizes.tested]
        return grey(test.images[first]), grey(test.images[second])

    def apart(x: Tensor, y: Tensor, seed: int) -> float:
        return sliced_wasserstein(x, y, generator=Generator().manual_seed(seed)).item()

    def layers(x: Tensor) -> Flow:
        glow = recipes.glow(shape, scales=2, steps=6, hidden_channels=64)
        assert isinstance(glow.transport, Chain)
        flow = Flow(glow.base, Chain(*glow.transport[:-1], Affine(2.0, -1.0)))  # to [-1, 1]
        flow.initialize(x)
        return flow

    return Problem(
        "mnist",
        Gaussian(shape),
        fresh,
        field=lambda: network(None),
        flow_map=lambda: NetworkFlowMap(
            network(SpanTime(SinusoidalTime(8, scale=30.0), SinusoidalTime(8, scale=30.0)))
        ),
        layers=layers,
        distance=lambda x, seed: apart(x, held(seed)[0], seed),
        floor=lambda seed: apart(*held(seed), seed),
        sizes=sizes,
        unit="sliced W2",
        finish=lambda x: grey(((x + 1) * 128).floor().clamp(0, 255)),
        event=shape,
    )
