"""Flow matching: paths, couplings, the regression loss, and reflow."""

from cflow.matching.coupling import (
    Coupling,
    IndependentCoupling,
    OTCoupling,
    PairedCoupling,
    Pairs,
)
from cflow.matching.loss import matching
from cflow.matching.path import LinearPath, Path, PathPoint
from cflow.matching.reflow import euler_times, reflow_pairs

__all__ = [
    "Coupling",
    "IndependentCoupling",
    "LinearPath",
    "OTCoupling",
    "PairedCoupling",
    "Pairs",
    "Path",
    "PathPoint",
    "euler_times",
    "matching",
    "reflow_pairs",
]
