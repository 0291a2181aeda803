"""Draw samples: samplers along a path, guidance on the way, denoising afterwards."""

from cflow.samples.batches import draw, log_probs
from cflow.samples.calibrate import Calibration, calibrate
from cflow.samples.corrector import PredictorCorrector
from cflow.samples.curved import CurvedEuler, CurvedHeun
from cflow.samples.denoise import denoise, guided
from cflow.samples.inpaint import inpaint
from cflow.samples.inverse import (
    EndCovariance,
    IsotropicCovariance,
    PosteriorField,
    TweedieCovariance,
    sample_posterior,
)
from cflow.samples.noise import (
    ConstantNoise,
    FunctionNoise,
    NoiseLevel,
    ProportionalNoise,
    ScheduleNoise,
)
from cflow.samples.sampled import SampledTransport, with_sampler
from cflow.samples.sampler import Moment, PathSampler, Plan, SteppingSampler, Walk
from cflow.samples.stochastic import SDE, NoiseRefresh, Overshooting, StochasticSampler
from cflow.samples.straightness import PathMeasures, by_steps, path_measures

__all__ = [
    "SDE",
    "Calibration",
    "ConstantNoise",
    "CurvedEuler",
    "CurvedHeun",
    "EndCovariance",
    "FunctionNoise",
    "IsotropicCovariance",
    "Moment",
    "NoiseLevel",
    "NoiseRefresh",
    "Overshooting",
    "PathMeasures",
    "PathSampler",
    "Plan",
    "PosteriorField",
    "PredictorCorrector",
    "ProportionalNoise",
    "SampledTransport",
    "ScheduleNoise",
    "SteppingSampler",
    "StochasticSampler",
    "TweedieCovariance",
    "Walk",
    "by_steps",
    "calibrate",
    "denoise",
    "draw",
    "guided",
    "inpaint",
    "log_probs",
    "path_measures",
    "sample_posterior",
    "with_sampler",
]
