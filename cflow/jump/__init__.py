"""Jump flows: discrete flow matching by continuous-time Markov chains, for tokens."""

from cflow.jump.clock import Clock, MixtureClock, PlainClock
from cflow.jump.draw import Draw
from cflow.jump.flow import JumpFlow
from cflow.jump.metric import KineticSchedule, MetricPath
from cflow.jump.mixture_steps import MixtureSteps
from cflow.jump.noising import NoisingPath
from cflow.jump.path import JumpPath, MixturePath
from cflow.jump.rates import DirectRates, NetworkPosterior, Posterior, Rates
from cflow.jump.sampler import JumpSampler, JumpWalk, SteppingJumps

__all__ = [
    "Clock",
    "DirectRates",
    "Draw",
    "JumpFlow",
    "JumpPath",
    "JumpSampler",
    "JumpWalk",
    "KineticSchedule",
    "MetricPath",
    "MixtureClock",
    "MixturePath",
    "MixtureSteps",
    "NetworkPosterior",
    "NoisingPath",
    "PlainClock",
    "Posterior",
    "Rates",
    "SteppingJumps",
]
