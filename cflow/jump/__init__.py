"""Jump flows: discrete flow matching by continuous-time Markov chains, for tokens."""

from cflow.jump.adaptive import AdaptiveJumps
from cflow.jump.clock import Clock, MixtureClock, PlainClock
from cflow.jump.corrector import Corrected
from cflow.jump.cost import EmbeddingCost, HammingCost
from cflow.jump.dirichlet import DirichletPath
from cflow.jump.distil import LatentSteps, step_distillation
from cflow.jump.draw import Draw
from cflow.jump.euler import EulerJumps
from cflow.jump.first_hitting import FirstHitting
from cflow.jump.fisher import FisherPath
from cflow.jump.flow import JumpFlow
from cflow.jump.guidance import ClassifierFreePosterior, GuidedRates
from cflow.jump.infill import complete, infill
from cflow.jump.law import enumerate_states, law, state_index
from cflow.jump.leaping import TauLeaping
from cflow.jump.loss import (
    CrossEntropy,
    GeneralisedKL,
    JumpLoss,
    SquaredRates,
    jump_matching,
    negative_elbo,
)
from cflow.jump.metric import KineticSchedule, MetricPath
from cflow.jump.mixed import MixedFlow
from cflow.jump.mixed_loss import MixedTimes, mixed_matching
from cflow.jump.mixed_network import MixedEGNN
from cflow.jump.mixed_parts import points_given_tokens, tokens_given_points
from cflow.jump.mixed_state import Mixed
from cflow.jump.mixed_steps import MixedSteps
from cflow.jump.mixture_steps import MixtureSteps
from cflow.jump.network import TokenMLP, TransformerRates
from cflow.jump.noising import NoisingPath
from cflow.jump.path import JumpPath, MixturePath
from cflow.jump.predictor import PredictorPosterior, PredictorRates
from cflow.jump.rates import DirectRates, NetworkPosterior, Posterior, Rates
from cflow.jump.rectify import rectified_matching, token_pairs
from cflow.jump.relaxed import (
    RelaxedField,
    VertexPosterior,
    VertexVelocity,
    relaxed_flow,
    relaxed_matching,
)
from cflow.jump.restarted import Restarted
from cflow.jump.sampler import JumpSampler, JumpWalk, SteppingJumps
from cflow.jump.vertex_dequantize import VertexDequantize
from cflow.jump.vertices import VertexPath

__all__ = [
    "AdaptiveJumps",
    "ClassifierFreePosterior",
    "Clock",
    "Corrected",
    "CrossEntropy",
    "DirectRates",
    "DirichletPath",
    "Draw",
    "EmbeddingCost",
    "EulerJumps",
    "FirstHitting",
    "FisherPath",
    "GeneralisedKL",
    "GuidedRates",
    "HammingCost",
    "JumpFlow",
    "JumpLoss",
    "JumpPath",
    "JumpSampler",
    "JumpWalk",
    "KineticSchedule",
    "LatentSteps",
    "MetricPath",
    "Mixed",
    "MixedEGNN",
    "MixedFlow",
    "MixedSteps",
    "MixedTimes",
    "MixtureClock",
    "MixturePath",
    "MixtureSteps",
    "NetworkPosterior",
    "NoisingPath",
    "PlainClock",
    "Posterior",
    "PredictorPosterior",
    "PredictorRates",
    "Rates",
    "RelaxedField",
    "Restarted",
    "SquaredRates",
    "SteppingJumps",
    "TauLeaping",
    "TokenMLP",
    "TransformerRates",
    "VertexDequantize",
    "VertexPath",
    "VertexPosterior",
    "VertexVelocity",
    "complete",
    "enumerate_states",
    "infill",
    "jump_matching",
    "law",
    "mixed_matching",
    "negative_elbo",
    "points_given_tokens",
    "rectified_matching",
    "relaxed_flow",
    "relaxed_matching",
    "state_index",
    "step_distillation",
    "token_pairs",
    "tokens_given_points",
]
