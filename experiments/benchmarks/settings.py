"""What can be set from the command line, and the two sizes of every problem."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """Everything that can be set from the command line."""

    out: Path | None = None  # folder of the results; runs/<name>_benchmark where none is given
    only: tuple[str, ...] = ()  # names of the figures to measure; all where none is given
    repeats: int = 15  # rounds of the quick figures; the slow ones take a share of them
    threads: int = 2  # of torch
    seed: int = 0
    smoke: bool = False  # tiny sizes: every path of the code, figures meaningless

    def size(self, full: T, smoke: T) -> T:
        """Return the size of a problem: in earnest, or in the smoke mode."""
        return smoke if self.smoke else full

    def rounds(self, share: float = 1.0) -> int:
        """Return how often a contest is run: a share of `repeats`, and three at least."""
        return 2 if self.smoke else max(3, round(share * self.repeats))
