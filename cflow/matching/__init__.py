"""Flow matching: paths, couplings, the regression loss, reflow and distillation."""

from cflow.matching.bridge import BridgePath, BridgeProcess, bridge_error, bridge_matching
from cflow.matching.chain import along, chain
from cflow.matching.cost import Cost, GeodesicCost, SquaredEuclidean
from cflow.matching.coupling import Coupling, IndependentCoupling, PairedCoupling, Pairs
from cflow.matching.dropout import ContextDropout
from cflow.matching.entropic import EntropicCoupling
from cflow.matching.error import (
    FeatureError,
    PseudoHuber,
    RiemannianError,
    SquaredError,
    VelocityError,
)
from cflow.matching.exact import OTCoupling
from cflow.matching.geodesic import GeodesicPath, ManifoldPath
from cflow.matching.loss import Regression, matching, regression, squared_error
from cflow.matching.mean_flow import Spans, mean_flow
from cflow.matching.mixed import MixedPairs
from cflow.matching.partial import PartialCoupling
from cflow.matching.path import AffinePath, LinearPath, Path, PathPoint, SchedulePath
from cflow.matching.plan import PlanCoupling
from cflow.matching.pool import PairPool
from cflow.matching.premetric import PremetricPath
from cflow.matching.reflow import reflow_pairs
from cflow.matching.semidiscrete import SemiDiscreteCoupling, fit_semidiscrete
from cflow.matching.snapshots import snapshot_matching, unit_times
from cflow.matching.spline import SplinePath, spline_matching
from cflow.matching.steps import StepTimes
from cflow.matching.stored import StoredPairs
from cflow.matching.teacher import TeacherPairs
from cflow.matching.times import (
    CosineMapTimes,
    LogitNormalTimes,
    LogNormalSigmaTimes,
    ModeTimes,
    QuantileLaw,
    Stratified,
    TimeLaw,
    UniformTimes,
)
from cflow.matching.unbalanced import UnbalancedCoupling
from cflow.matching.weights import DensityWeight, LossWeight, SigmaWeight, SNRWeight

__all__ = [
    "AffinePath",
    "BridgePath",
    "BridgeProcess",
    "ContextDropout",
    "CosineMapTimes",
    "Cost",
    "Coupling",
    "DensityWeight",
    "EntropicCoupling",
    "FeatureError",
    "GeodesicCost",
    "GeodesicPath",
    "IndependentCoupling",
    "LinearPath",
    "LogNormalSigmaTimes",
    "LogitNormalTimes",
    "LossWeight",
    "ManifoldPath",
    "MixedPairs",
    "ModeTimes",
    "OTCoupling",
    "PairPool",
    "PairedCoupling",
    "Pairs",
    "PartialCoupling",
    "Path",
    "PathPoint",
    "PlanCoupling",
    "PremetricPath",
    "PseudoHuber",
    "QuantileLaw",
    "Regression",
    "RiemannianError",
    "SNRWeight",
    "SchedulePath",
    "SemiDiscreteCoupling",
    "SigmaWeight",
    "Spans",
    "SplinePath",
    "SquaredError",
    "SquaredEuclidean",
    "StepTimes",
    "StoredPairs",
    "Stratified",
    "TeacherPairs",
    "TimeLaw",
    "UnbalancedCoupling",
    "UniformTimes",
    "VelocityError",
    "along",
    "bridge_error",
    "bridge_matching",
    "chain",
    "fit_semidiscrete",
    "matching",
    "mean_flow",
    "reflow_pairs",
    "regression",
    "snapshot_matching",
    "spline_matching",
    "squared_error",
    "unit_times",
]
