"""How things are measured: interleaved clocks, and the rows of the table."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import Tensor

Seconds = dict[str, list[float]]  # one time for each contestant and round
Value = float | str


@dataclass(frozen=True)
class Row:
    """Hold one figure: what ours and the peers did, and how it stands to what is wanted.

    Attributes:
        what: The figure in words.
        ours: Our measurement.
        peers: Theirs, by name.
        unit: Of `ours` and `peers`; "s" is printed in milliseconds.
        judged: The number that is held against `wanted`, mostly a ratio of medians.
        spread: Quartiles of that ratio over the rounds.
        wanted: A bound on `judged`, or None where the figure is only reported.
        detail: Lines printed below the table.
    """

    what: str
    ours: Value
    peers: Mapping[str, Value] = field(default_factory=dict)
    unit: str = ""
    judged: float | None = None
    spread: tuple[float, float] | None = None
    wanted: tuple[Literal["<=", ">="], float] | None = None
    detail: tuple[str, ...] = ()

    @property
    def reached(self) -> bool | None:
        """Say whether the figure is as wanted; None where nothing is."""
        if self.wanted is None or self.judged is None:
            return None
        sign, bound = self.wanted
        return self.judged <= bound if sign == "<=" else self.judged >= bound

    def json(self) -> dict[str, Any]:
        return {**asdict(self), "peers": dict(self.peers), "reached": self.reached}


def interleave(
    contestants: Mapping[str, Callable[[], Any]], rounds: int, *, warm_up: int = 1
) -> Seconds:
    """Time every contestant once a round, in turn, so that all meet the same machine."""
    for _ in range(warm_up):
        for run in contestants.values():
            run()
    seconds: Seconds = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(above: list[float], below: list[float]) -> tuple[float, tuple[float, float]]:
    """Return the ratio of medians, and the quartiles of the ratios within each round."""
    pairs = [a / b for a, b in zip(above, below, strict=True)]
    low, _, high = statistics.quantiles(pairs, n=4, method="inclusive")
    return statistics.median(above) / statistics.median(below), (low, high)


def contest(
    what: str,
    seconds: Seconds,
    ours: str,
    *,
    against: str,
    wanted: float | None = None,
    faster: bool = False,
    per: Mapping[str, float] | None = None,
    detail: tuple[str, ...] = (),
) -> Row:
    """Make a row of times, `per` so many steps each, judged by our time over another's.

    With `faster` it is judged by the inverse, how many times faster we are, of which at least
    `wanted` is asked instead of at most.
    """
    shares = {name: per[name] if per else 1.0 for name in seconds}
    scaled = {name: [s / shares[name] for s in found] for name, found in seconds.items()}
    pair = (scaled[ours], scaled[against])
    judged, spread = ratio(*(pair[::-1] if faster else pair))
    medians = {name: statistics.median(found) for name, found in scaled.items()}
    mine = medians.pop(ours)
    bound = None if wanted is None else (">=" if faster else "<=", wanted)
    return Row(what, mine, medians, "s", judged, spread, bound, detail)


def fastest(seconds: Seconds, *names: str) -> str:
    """Return the contestant with the smallest median."""
    return min(names, key=lambda name: statistics.median(seconds[name]))


def counted(f: Callable[..., Any]) -> tuple[Callable[..., Any], "Count"]:
    """Return f(t, y, ...) with a count of its calls and of the rows of y that they held."""
    count = Count()

    def counting(t: Tensor, y: Tensor, *rest: Any) -> Any:
        count.calls += 1
        count.rows += len(y)
        return f(t, y, *rest)

    return counting, count


@dataclass
class Count:
    """Calls of a field, and rows evaluated in them."""

    calls: int = 0
    rows: int = 0
