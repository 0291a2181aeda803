"""What training alone sees: noise on the data, and labels left out.

    noise:   x -> x + scale e, e standard normal        labels:   label -> -1 by chance

Both act in the pull of a flow in training mode, as dropout does; in evaluation mode and in sampling
they do nothing. In training mode `log_prob` is random, and its mean is a lower bound of log E[p],
the density averaged over the noise (Jensen), so it is called a bound. In evaluation mode it is the
exact density of what the flow was trained on, namely of *noisy* data: score it on points to which
the same noise was added (`GaussianNoise.add`), and clean its samples by `cflow.samples.denoise`.
Source: Zhai et al. (2024), Normalizing flows are capable generative models, arXiv 2412.06329; left
out labels: Ho and Salimans (2022), Classifier-free diffusion guidance, arXiv 2207.12598.
"""

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, expect_positive
from cflow.state import State
from cflow.transport.transport import Likelihood, Shape, Transport

__all__ = ["GaussianNoise", "LabelDropout"]


class GaussianNoise(Transport):
    """Blur the data in training; put it at the data end of a chain.

    A flow so trained is a density of noisy data, and its samples are noisy.

    Args:
        scale: Standard deviation of the noise, in units of the points.

    Raises:
        DomainError: The scale is not positive.

    Example:
        >>> layer = GaussianNoise(0.1)
        >>> x = torch.zeros(1, 2)
        >>> noisy, plain = layer.pull(State(x)).x, layer.eval().pull(State(x)).x
        >>> bool((noisy != x).all()), bool((plain == x).all())
        (True, True)
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        expect_positive("GaussianNoise", scale=scale)
        self.scale = scale

    def add(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Return noisy points: the data whose density the flow describes."""
        noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        return x + self.scale * noise

    def push(
        self, state: State, context: Tensor | None = None, *, generator: Generator | None = None
    ) -> State:
        return state

    def pull(
        self, state: State, context: Tensor | None = None, *, generator: Generator | None = None
    ) -> State:
        if not self.training:
            return state
        return state._replace(x=self.add(state.x, generator=generator))

    @property
    def likelihood(self) -> Likelihood:
        return "bound" if self.training else "exact"

    def out_shape(self, shape: Shape) -> Shape:
        return shape


class LabelDropout(Transport):
    """Hide labels from a transport in training, so that it learns the law of all classes as well.

    Args:
        transport: Takes integer labels `(*batch,)` as context, a negative one for no label.
        rate: Probability with which a label is replaced by -1 in a pull.

    Raises:
        DomainError: The rate lies outside [0, 1).

    Example:
        >>> from cflow.transport import Chain
        >>> LabelDropout(Chain(), 0.1).eval().likelihood
        'exact'
    """

    def __init__(self, transport: Transport, rate: float = 0.1) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise DomainError(f"LabelDropout: rate must lie in [0, 1), got {rate}")
        self.transport = transport
        self.rate = rate

    def push(
        self, state: State, context: Tensor | None = None, *, generator: Generator | None = None
    ) -> State:
        return self.transport.push(state, context, generator=generator)

    def pull(
        self, state: State, context: Tensor | None = None, *, generator: Generator | None = None
    ) -> State:
        if self.training and self.rate and context is not None:
            chance = torch.rand(context.shape, device=context.device, generator=generator)
            context = torch.where(chance < self.rate, -1, context)
        return self.transport.pull(state, context, generator=generator)

    @property
    def likelihood(self) -> Likelihood:
        return "bound" if self.training and self.rate else self.transport.likelihood

    def out_shape(self, shape: Shape) -> Shape:
        return self.transport.out_shape(shape)
