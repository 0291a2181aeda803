"""Small spaces on which everything about a jump process is known in closed form.

Data, base and path are given; p_t(x, x1) is a finite sum over starts and ends, so the law of each
time and the posterior p(x1 | x_t) follow, and so does the law of every scheme of steps. Nothing of
this asks the paths and clocks under test, but for their options; rates are theirs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import torch
from scipy.stats import chisquare
from torch import Tensor

from cflow.base import Categorical, EmpiricalTokens, MaskTokens, TokenBase, UniformTokens
from cflow.field import (
    CosineSchedule,
    FunctionSchedule,
    LinearSchedule,
    LinearVPSchedule,
    LipmanSchedule,
    PathSchedule,
    PolynomialSchedule,
    VPSchedule,
)
from cflow.jump import (
    JumpPath,
    JumpSampler,
    KineticSchedule,
    MetricPath,
    MixturePath,
    NetworkPosterior,
    NoisingPath,
    enumerate_states,
    state_index,
)

FALSE_ALARM = 1e-6  # probability that a right sampler fails a test
VOCABULARY = 3
WALKERS = 20_000
SPANS = [(0.0, 0.2), (0.0, 0.6), (0.0, 1.0), (0.3, 0.6), (0.3, 1.0)]
LEVELS = torch.arange(3.0, dtype=torch.float64)
METRIC = MetricPath((LEVELS[:, None] - LEVELS).abs())
SCHEDULES: list[PathSchedule] = [
    LinearSchedule(),
    PolynomialSchedule(2.0),
    CosineSchedule(),
    VPSchedule(),
    LinearVPSchedule(),
    LipmanSchedule(0.1),
    FunctionSchedule(lambda t: t * (2 - t), lambda t: (1 - t) ** 2 + 0.01 * (1 - t)),
    KineticSchedule(),
    KineticSchedule(1 / VOCABULARY),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def kappa(schedule: PathSchedule, t: float) -> float:
    """Return the share of data, from what a schedule leaves of its base."""
    c = schedule(torch.tensor([t, 0.0, 1.0]))
    now, first, last = (c.sigma / (c.alpha + c.sigma)).tolist()
    return 1 - (now - last) / (first - last)


def beta(path: MetricPath, t: float) -> float:
    return path.scale * (t / (1 - t)) ** path.power if t < 1 else math.inf


def bases(tokens: int) -> dict[str, TokenBase]:
    """Return one base of each kind, lopsided where it may be."""
    table = torch.tensor([[0, 0], [0, 2], [1, 1], [2, 1], [2, 1]])[:, :tokens]
    each = torch.tensor([[0.7, 0.1, 0.2], [0.1, 0.3, 0.6]])[:tokens]
    return {
        "masks": MaskTokens(tokens, VOCABULARY),
        "uniform": UniformTokens(tokens, VOCABULARY),
        "categorical": Categorical(tokens, each),
        "some masks": Categorical(tokens, torch.tensor([0.3, 0.2, 0.1, 0.4]), masked=True),
        "empirical": EmpiricalTokens(table, VOCABULARY),
    }


@dataclass
class Small:
    """A process between a base and data of a few states.

    Attributes:
        base: Its start.
        path: How it goes.
        seed: Of the data's law, which is random, with no state left out.
    """

    base: TokenBase
    path: JumpPath = field(default_factory=MixturePath)
    seed: int = 0
    joints: dict[float, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = self.tokens
        self.x = enumerate_states(self.base.states, n)
        self.ends = enumerate_states(self.base.vocabulary, n)
        self.data = torch.rand(len(self.ends), generator=generator(self.seed)).square() + 0.02
        self.data /= self.data.sum()
        first = self.base.log_prob(self.x).exp()
        self.starts, self.first = self.x[first > 0], first[first > 0]
        self.rates = NetworkPosterior(self.log_posterior, self.base, self.path)

    @property
    def tokens(self) -> int:
        return math.prod(self.base.event_shape)

    def joint(self, t: float) -> Tensor:
        """Return p_t(x, x1), `(states, ends)`."""
        if t not in self.joints:
            starts, ends = self.starts[:, None, None], self.ends[None, :, None]
            p = self.first[:, None, None] * self.data[:, None]  # (starts, ends, states)
            for i in range(self.tokens):
                p = p * self.chance(t, starts[..., i], ends[..., i], self.x[:, i])
            self.joints[t] = p.sum(0).T
        return self.joints[t]

    def chance(self, t: float, x0: Tensor, x1: Tensor, x: Tensor) -> Tensor:
        """Return the probability that a token from x0 to x1 is x at time t."""
        if isinstance(self.path, MetricPath):
            table = (-beta(self.path, t) * self.path.distance).nan_to_num(0).softmax(-1)
            return table[x1, x]
        k = kappa(self.path.schedule, t)
        return k * (x == x1) + (1 - k) * (x == x0)

    def between(self, t: float, t_next: float) -> float:
        """Return the step in the clock."""
        if isinstance(self.path, MetricPath):
            return beta(self.path, t_next) - beta(self.path, t)
        left = 1 - kappa(self.path.schedule, t_next)
        return math.log((1 - kappa(self.path.schedule, t)) / left) if left else math.inf

    def law(self, t: float) -> Tensor:
        """Return p_t(x) of all states."""
        return self.joint(t).sum(1)

    def posterior(self, t: float) -> Tensor:
        """Return p(x1 of a token | x_t), `(states, tokens, vocabulary)`; any if x is impossible."""
        joint = self.joint(t) + 1e-300
        values = torch.arange(self.base.vocabulary)
        ends_in = (self.ends[:, :, None] == values).to(joint)  # (ends, tokens, vocabulary)
        return torch.einsum("xe,eiv->xiv", joint / joint.sum(1, keepdim=True), ends_in)

    def log_posterior(self, t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        """Answer as a perfect network; times may differ for masks, to which all are one."""
        if not self.base.absorbing:
            assert bool((t == t[0]).all())
        when = 0.5 if self.base.absorbing else t[0].item()
        rows = state_index(x.reshape(len(x), -1), self.base.states)
        return self.posterior(when).log()[rows].reshape(*x.shape, -1)

    def draw(self, t: float, n: int, seed: int) -> Tensor:
        """Draw from p_t, `(n, tokens)`."""
        rows = torch.multinomial(self.law(t), n, replacement=True, generator=generator(seed))
        return self.x[rows]

    def stay(self) -> Tensor:
        """Return rows that stay, `(states, tokens, states)`."""
        return torch.eye(self.base.states)[self.x]

    def probabilities(self, t: float) -> Tensor:
        """Return the posterior over all states of a token, final tokens staying."""
        p = torch.nn.functional.pad(self.posterior(t), (0, self.base.states - self.base.vocabulary))
        if self.base.absorbing:
            p = torch.where((self.x == self.base.mask)[..., None], p, self.stay())
        return p

    def ask(self, t: float) -> Tensor:
        """Return the rates of all states."""
        return self.path.rates(torch.full((len(self.x),), t), self.x, self.probabilities(t))


Rows = Callable[[Small, float, float], Tensor]
"""A scheme: where each token goes in one step, by itself, from all states."""


def scheme_law(small: Small, p: Tensor, times: Sequence[float], rows: Rows) -> Tensor:
    """Return the law after steps that move every token by itself, without noise."""
    for t, t_next in pairwise(times):
        each = rows(small, t, t_next)
        table = each[:, 0]
        for i in range(1, small.tokens):
            table = (table[:, :, None] * each[:, i, None]).flatten(1)
        p = p @ table
    return p


def by_mixture(small: Small, t: float, t_next: float) -> Tensor:
    """Jump with q, then draw from the posterior: MixtureSteps."""
    q = -math.expm1(-small.between(t, t_next))
    return q * small.probabilities(t) + (1 - q) * small.stay()


def by_euler(small: Small, t: float, t_next: float) -> Tensor:
    """Leave with 1 - exp(-h U): EulerJumps."""
    h = small.between(t, t_next)
    if math.isinf(h):
        return small.probabilities(t)
    u = small.ask(t)
    total = u.sum(-1, keepdim=True)
    away = -torch.expm1(-h * total)
    return away * u / total.clamp_min(1e-300) + (1 - away) * small.stay()


def by_leaps(small: Small, t: float, t_next: float) -> Tensor:
    """Go where the only jump goes: TauLeaping."""
    h = small.between(t, t_next)
    if math.isinf(h):
        return small.probabilities(t)
    u = small.ask(t)
    total = u.sum(-1, keepdim=True)
    once = (-h * total).exp() * h
    return once * u + (1 - once * total) * small.stay()


def grid(start: float, end: float, steps: int) -> list[float]:
    return [start + (end - start) * k / steps for k in range(steps)] + [end]


def distance(p: Tensor, q: Tensor) -> float:
    """Return the total variation between two laws."""
    return 0.5 * (p - q).abs().sum().item()


def p_value(x: Tensor, law: Tensor, states: int) -> float:
    """Return how likely draws as far from a law as x are; states of the law 0 must not be drawn."""
    counts = torch.bincount(state_index(x.reshape(len(x), -1), states), minlength=len(law))
    possible = law > 1e-15
    if counts[~possible].any():
        return 0.0
    expected = len(x) * law[possible] / law[possible].sum()
    found = counts[possible]
    rare = expected < 5  # too few for the test: taken together
    if rare.any():
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
        found = torch.cat([found[~rare], found[rare].sum()[None]])
    if len(found) == 1:
        return 1.0
    return float(chisquare(found.numpy(), expected.numpy()).pvalue)


def walked(
    small: Small, sampler: JumpSampler, start: float, end: float, *, walkers: int = WALKERS
) -> Tensor:
    """Carry draws of p_start, or of the base itself, to the end."""
    if start:
        x0 = small.draw(start, walkers, 1)
    else:
        x0 = small.base.sample((walkers,), generator=generator(1))
    return sampler.sample(
        small.rates, x0, base=small.base, start=start, end=end, generator=generator(2)
    )


def draws_have(small: Small, x: Tensor, expected: Tensor) -> bool:
    return p_value(x, expected, small.base.states) > FALSE_ALARM


def ratio(small: Small, start: float, end: float, steps: int, rows: Rows) -> float:
    """Return how much nearer the scheme comes to the exact law by twice as many steps."""
    errors = [
        distance(scheme_law(small, small.law(start), grid(start, end, n), rows), small.law(end))
        for n in (steps, 2 * steps)
    ]
    return errors[0] / errors[1]


def on(name: str, kind: str, tokens: int = 2) -> Small:
    base = bases(tokens)[name]
    path = {
        "mixture": lambda: MixturePath(PolynomialSchedule(2.0)),
        "metric": lambda: METRIC,
        "noising": lambda: NoisingPath.of(base),
    }[kind]()
    return Small(base, path)
