"""A training step of five autoregressive spline transforms, beside the dense networks in them.

The floor is the forward and backward pass, in eager mode, of five dense networks with as many
inputs, hidden units and outputs as the conditioners have, without masks and without splines: no
flow of these sizes can be trained in less by eager matrix products.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cflow import recipes
from experiments.benchmarks.measure import Row, contest, interleave
from experiments.benchmarks.settings import Settings

TRANSFORMS, BINS, BOUND = 5, 8, 5.0
EAGER, COMPILED = 3.0, 1.8  # wanted, in units of the floor


def training(settings: Settings) -> list[Row]:
    """Time forward and backward passes of -log p, all contestants in turn."""
    features, hidden = settings.size((43, (128, 128)), (3, (8, 8)))
    batch = settings.size(512, 16)
    rows = []
    for kind in ("nsf", "maf"):
        torch.manual_seed(settings.seed)
        x = torch.randn(batch, features)
        models = contestants(kind, features, hidden, backend=settings.size("inductor", "aot_eager"))
        steps = {name: step(*model, x) for name, model in models.items()}
        seconds = interleave(steps, settings.rounds(), warm_up=3)
        sizes = {
            name: sum(p.numel() for p in model.parameters()) for name, (model, _) in models.items()
        }
        detail = (f"{kind}: parameters " + ", ".join(f"{k} {n}" for k, n in sizes.items()),)
        what = f"{kind}, D={features}, 5 x {hidden}, batch {batch}, a step over the floor"
        for ours in ("cflow", "cflow, compiled"):
            wanted = {"cflow": EAGER, "cflow, compiled": COMPILED}[ours] if kind == "nsf" else None
            rows.append(
                contest(
                    f"{what}: {ours}", seconds, ours, against="floor", wanted=wanted, detail=detail
                )
            )
        for peer in ("zuko", "nflows", "normflows"):
            rows.append(contest(f"{what}: {peer}", seconds, peer, against="floor"))
    return rows


Model = tuple[nn.Module, Callable[[Tensor], Tensor]]


def contestants(
    kind: str, features: int, hidden: tuple[int, ...], *, backend: str
) -> dict[str, Model]:
    """Return each contestant's module and its loss of a batch."""
    build = {"nsf": splines, "maf": affine}[kind]
    flows = build(features, hidden)
    ours = flows["cflow"][0]
    loss = flows["cflow"][1]
    torch.compiler.reset()
    compiled = torch.compile(lambda x: loss(x), backend=backend)
    outputs = features * (3 * BINS - 1 if kind == "nsf" else 2)
    return {"floor": floor(features, hidden, outputs), **flows, "cflow, compiled": (ours, compiled)}


def floor(features: int, hidden: tuple[int, ...], outputs: int) -> Model:
    def dense() -> nn.Sequential:
        widths = (features, *hidden)
        layers: list[nn.Module] = []
        for a, b in zip(widths, hidden, strict=False):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))

    networks = nn.ModuleList(dense() for _ in range(TRANSFORMS))
    return networks, lambda x: sum((net(x).sum() for net in networks), start=x.new_zeros(()))


def splines(features: int, hidden: tuple[int, ...]) -> dict[str, Model]:
    import nflows.transforms as nft
    import normflows
    import zuko

    ours = recipes.nsf(features, transforms=TRANSFORMS, hidden_features=hidden, bins=BINS)
    zukos = zuko.flows.NSF(features, transforms=TRANSFORMS, hidden_features=hidden, bins=BINS)
    nflow = nflows_flow(
        features,
        [
            nft.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                features,
                hidden_features=hidden[0],
                num_blocks=1,
                use_residual_blocks=False,
                num_bins=BINS,
                tails="linear",
                tail_bound=BOUND,
            )
            for _ in range(TRANSFORMS)
        ],
    )
    normal: Any = normflows.NormalizingFlow(
        normflows.distributions.DiagGaussian(features, trainable=False),
        [
            normflows.flows.AutoregressiveRationalQuadraticSpline(
                features, 1, hidden[0], num_bins=BINS, tail_bound=int(BOUND)
            )
            for _ in range(TRANSFORMS)
        ],
    )
    return {
        "cflow": (ours, lambda x: -ours.log_prob(x).mean()),
        "zuko": (zukos, lambda x: -zukos().log_prob(x).mean()),
        "nflows": (nflow, lambda x: -nflow.log_prob(x).mean()),
        "normflows": (normal, lambda x: -normal.log_prob(x).mean()),
    }


def affine(features: int, hidden: tuple[int, ...]) -> dict[str, Model]:
    import nflows.transforms as nft
    import normflows
    import zuko

    ours = recipes.maf(features, transforms=TRANSFORMS, hidden_features=hidden)
    zukos = zuko.flows.MAF(features, transforms=TRANSFORMS, hidden_features=hidden)
    nflow = nflows_flow(
        features,
        [
            nft.MaskedAffineAutoregressiveTransform(
                features, hidden_features=hidden[0], num_blocks=1, use_residual_blocks=False
            )
            for _ in range(TRANSFORMS)
        ],
    )
    parts = [
        normflows.flows.MaskedAffineAutoregressive(features, hidden[0], num_blocks=1)
        for _ in range(TRANSFORMS)
    ]
    # Their masked affine layer is parallel towards the data: the density's pass is its forward.
    normal: Any = normflows.NormalizingFlow(
        normflows.distributions.DiagGaussian(features, trainable=False),
        [normflows.flows.Reverse(part) for part in parts],
    )
    return {
        "cflow": (ours, lambda x: -ours.log_prob(x).mean()),
        "zuko": (zukos, lambda x: -zukos().log_prob(x).mean()),
        "nflows": (nflow, lambda x: -nflow.log_prob(x).mean()),
        "normflows": (normal, lambda x: -normal.log_prob(x).mean()),
    }


def nflows_flow(features: int, parts: list[nn.Module]) -> Any:
    import nflows.distributions
    import nflows.flows
    import nflows.transforms as nft

    return nflows.flows.Flow(
        nft.CompositeTransform(parts), nflows.distributions.StandardNormal((features,))
    )


def step(model: nn.Module, loss: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    """Return one training step short of the optimiser's, which is the same for all."""

    def run() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        loss(x).backward()

    return run
