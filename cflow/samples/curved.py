"""Deterministic samplers: solve the ODE of a field by steps along its own path.

    x_next = alpha_next x1 + sigma_next x0,    x0, x1 the ends expected at x

For a Gaussian base this is the step of DDIM, for any affine path; along straight paths (sigma = 1 -
alpha) of constant speed it is Euler's method. Where a path curves, Euler's method goes off along
the tangent and this does not: points whose ends are known are carried without error.
Source: Song, Meng and Ermon (2021), Denoising diffusion implicit models, arXiv 2010.02502, equation
12; Lu et al. (2022), DPM-Solver++, arXiv 2211.01095, section 4; the step for any affine path:
Liu et al., the rectified-flow library (2024).
"""

from dataclasses import dataclass

from cflow.samples.sampler import Moment, SteppingSampler, Walk, carried
from cflow.typing import Points

__all__ = ["CurvedEuler", "CurvedHeun"]


@dataclass(frozen=True)
class CurvedEuler(SteppingSampler):
    """Step along the path between the expected ends: order 1, one evaluation a step.

    On `LinearSchedule()` the same as `Euler`. It runs in both directions; backwards it finds the
    noise that belongs to data (DDIM inversion).

    Attributes:
        steps: Number of steps, at least 1; the error falls like 1 / steps.
        schedule: The path that the field was trained on.
        grid: Where the steps fall.

    References:
        Song, Meng and Ermon (2021), arXiv 2010.02502, equation 12 with sigma_t = 0.

    Example:
        >>> import torch
        >>> from cflow.field import CosineSchedule, GaussianMixture, MixtureField
        >>> law = GaussianMixture(torch.zeros(1, 2))
        >>> field = MixtureField(law, law, CosineSchedule())  # the law is the same at all times
        >>> x = CurvedEuler(100, CosineSchedule()).sample(field, torch.ones(1, 2))
        >>> (x - 1).abs().max() < 0.02
        tensor(True)
    """

    steps: int = 100

    @property
    def random(self) -> bool:
        return False

    def step(self, walk: Walk, now: Moment, then: Moment, x: Points) -> Points:
        return carried(walk, now, then, x, kept=1.0, fresh=0.0, order=1)


@dataclass(frozen=True)
class CurvedHeun(SteppingSampler):
    """Step along the path, then again with x1 averaged over the step: order 2, two evaluations.

    The last step, to where no noise is left, takes one.

    Attributes:
        steps: Number of steps, at least 1; the error falls like 1 / steps^2 where sigma is smooth.
        schedule: The path that the field was trained on.
        grid: Where the steps fall.

    References:
        Karras et al. (2022), arXiv 2206.00364, algorithm 1, for Heun's method without its last
        evaluation; Lu et al. (2022), arXiv 2211.01095, for freezing x1.

    Example:
        >>> import torch
        >>> from cflow.field import MLPField
        >>> CurvedHeun(4).sample(MLPField(2), torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    @property
    def random(self) -> bool:
        return False

    def step(self, walk: Walk, now: Moment, then: Moment, x: Points) -> Points:
        return carried(walk, now, then, x, kept=1.0, fresh=0.0, order=2)
