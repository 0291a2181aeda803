"""Flow matching: paths, couplings, the regression loss, and reflow."""

from cflow.matching.cost import GeodesicCost, SquaredEuclidean
from cflow.matching.coupling import Coupling, IndependentCoupling, PairedCoupling, Pairs
from cflow.matching.exact import OTCoupling
from cflow.matching.loss import matching
from cflow.matching.path import AffinePath, LinearPath, Path, PathPoint, SchedulePath
from cflow.matching.plan import PlanCoupling
from cflow.matching.reflow import euler_times, reflow_pairs

__all__ = [
    "AffinePath",
    "Coupling",
    "GeodesicCost",
    "IndependentCoupling",
    "LinearPath",
    "OTCoupling",
    "PairedCoupling",
    "Pairs",
    "Path",
    "PathPoint",
    "PlanCoupling",
    "SchedulePath",
    "SquaredEuclidean",
    "euler_times",
    "matching",
    "reflow_pairs",
]
