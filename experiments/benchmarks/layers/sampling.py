"""Samples of autoregressive flows, which invert five networks, beside log_prob of the same points.

Sequential passes make a sample cost as many networks as there are features; computing each hidden
unit once makes it cost about one. The figure is the cost of 1000 samples over that of log_prob of
1000 points; log_prob itself has to stand beside zuko's. The last figure is a gradient through 64
samples, which the peers get by unrolling their passes.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from cflow import Flow, recipes
from experiments.benchmarks.measure import Row, contest, interleave
from experiments.benchmarks.settings import Settings

TRANSFORMS, BINS, BOUND = 5, 8, 5.0
RATIO = 2.5  # wanted: sample over log_prob
LIKELIHOOD = 1.0  # wanted: our log_prob over zuko's
SLOW_ROUNDS = 2  # of the peers, whose samples take seconds


def sampling(settings: Settings) -> list[Row]:
    """Time our samples and log_prob in turn, then log_prob beside the peers, then their samples."""
    rows = []
    batch = settings.size(1000, 16)
    for features in settings.size((43, 196), (3,)):
        for kind in ("maf", "nsf"):
            rows += ratios(kind, features, batch, settings)
    return [*rows, gradient(settings)]


def ratios(kind: str, features: int, batch: int, settings: Settings) -> list[Row]:
    hidden = settings.size((512, 512), (8, 8))
    torch.manual_seed(settings.seed)
    x = torch.randn(batch, features)
    flow = ours(kind, features, hidden)
    densities: dict[str, Callable[[], object]] = {"cflow": lambda: flow.log_prob(x)}
    samples: dict[str, Callable[[], object]] = {}
    for name, (sample, log_prob) in peers(kind, features, hidden).items():
        densities[name], samples[name] = partial(log_prob, x), partial(sample, batch)
    own: dict[str, Callable[[], object]] = {
        "cflow": lambda: flow.sample(batch),
        "cflow, log_prob": densities["cflow"],
    }
    with torch.no_grad():
        both = interleave(own, settings.rounds(), warm_up=2)
        density = interleave(densities, settings.rounds(), warm_up=2)
        slow = interleave(samples, SLOW_ROUNDS, warm_up=0) if samples else {}
    what = f"{kind}, D={features}, 5 x {hidden}, batch {batch}"
    title = f"{what}: sample over log_prob"
    rows = [
        contest(f"{title}, cflow", both, "cflow", against="cflow, log_prob", wanted=RATIO),
    ]
    for name, taken in slow.items():
        pair = {name: taken, f"{name}, log_prob": density[name][:SLOW_ROUNDS]}
        rows.append(contest(f"{title}, {name}", pair, name, against=f"{name}, log_prob"))
    if "zuko" in density:
        pair = {name: density[name] for name in ("cflow", "zuko")}
        title = f"{what}: log_prob over zuko's"
        rows.append(contest(title, pair, "cflow", against="zuko", wanted=LIKELIHOOD))
    return rows


def gradient(settings: Settings) -> Row:
    """Time the gradient of a mean over 64 reparameterised samples, towards all weights."""
    features, batch = settings.size((63, 64), (3, 4))
    hidden = settings.size((512, 512), (8, 8))
    torch.manual_seed(settings.seed)
    flow = ours("maf", features, hidden)
    steps: dict[str, Callable[[], None]] = {
        "cflow": lambda: flow.rsample(batch).square().mean().backward()
    }
    zuko = zukos("maf", features, hidden)
    if zuko is not None:
        steps["zuko"] = lambda: zuko().rsample((batch,)).square().mean().backward()
    seconds = interleave(steps, settings.rounds())
    what = f"maf, D={features}, {batch} samples: gradient through rsample"
    against = "zuko" if "zuko" in seconds else "cflow"
    return contest(what, seconds, "cflow", against=against, faster=True)


def ours(kind: str, features: int, hidden: tuple[int, ...]) -> Flow:
    """Build the recipe, whose layers, orders and units are those of zuko's."""
    if kind == "maf":
        return recipes.maf(features, transforms=TRANSFORMS, hidden_features=hidden)
    return recipes.nsf(
        features, transforms=TRANSFORMS, hidden_features=hidden, bins=BINS, bound=BOUND
    )


Peer = tuple[Callable[[int], object], Callable[[Tensor], object]]


def peers(kind: str, features: int, hidden: tuple[int, ...]) -> dict[str, Peer]:
    """Return how each installed peer samples and evaluates."""
    found: dict[str, Peer] = {}
    zuko = zukos(kind, features, hidden)
    if zuko is not None:
        found["zuko"] = (lambda n: zuko().sample((n,)), lambda x: zuko().log_prob(x))
    try:
        import nflows.transforms as nft
        from nflows.distributions import StandardNormal
        from nflows.flows import Flow as NFlow
    except ImportError:
        return found
    options = {"hidden_features": hidden[0], "num_blocks": 1, "use_residual_blocks": False}
    if kind == "maf":
        parts = [nft.MaskedAffineAutoregressiveTransform(features, **options) for _ in range(5)]
    else:
        spline = nft.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
        tails = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
        parts = [spline(features, **tails, **options) for _ in range(TRANSFORMS)]
    flow = NFlow(nft.CompositeTransform(parts), StandardNormal((features,)))
    found["nflows"] = (flow.sample, flow.log_prob)
    return found


def zukos(kind: str, features: int, hidden: tuple[int, ...]) -> Callable | None:
    try:
        import zuko
    except ImportError:
        return None
    if kind == "maf":
        return zuko.flows.MAF(features, transforms=TRANSFORMS, hidden_features=hidden)
    return zuko.flows.NSF(features, transforms=TRANSFORMS, hidden_features=hidden, bins=BINS)
