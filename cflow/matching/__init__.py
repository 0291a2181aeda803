"""Flow matching: paths, couplings, the regression loss, and reflow."""

from cflow.matching.coupling import (
    Coupling,
    IndependentCoupling,
    OTCoupling,
    PairedCoupling,
    Pairs,
)
from cflow.matching.loss import matching
from cflow.matching.path import AffinePath, LinearPath, Path, PathPoint, SchedulePath
from cflow.matching.reflow import euler_times, reflow_pairs

__all__ = [
    "AffinePath",
    "Coupling",
    "IndependentCoupling",
    "LinearPath",
    "OTCoupling",
    "PairedCoupling",
    "Pairs",
    "Path",
    "PathPoint",
    "SchedulePath",
    "euler_times",
    "matching",
    "reflow_pairs",
]
