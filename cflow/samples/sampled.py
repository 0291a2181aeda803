"""Flows whose points are carried by a sampler: one line between a trained flow and any sampler."""

from typing import NoReturn

from torch import Generator, Tensor

from cflow.base import Base, Gaussian, Tempered
from cflow.errors import DomainError
from cflow.flow import Flow
from cflow.manifold import Euclidean
from cflow.samples.sampler import PathSampler
from cflow.state import State
from cflow.transport import ODE, Chain, Likelihood, Transport
from cflow.transport.exchange import exchanged

__all__ = ["SampledTransport", "rebuilt", "with_sampler"]


class SampledTransport(Transport):
    """Push points along the field of an ODE by a sampler; all modules are shared.

    What comes out has no density of its own that could be followed, so it pushes points and refuses
    everything else; ask the ODE itself for log-likelihoods, which belong to the same law.

    Args:
        ode: The trained transport, in flat space.
        sampler: Carries its points from t = 0 to 1.
        progress: Show a bar of the steps where there is a terminal.

    Raises:
        DomainError: The ODE runs on a manifold.

    Example:
        >>> import torch
        >>> from cflow.field import MLPField
        >>> from cflow.samples import SDE
        >>> transport = SampledTransport(ODE(MLPField(2)), SDE(4))
        >>> transport.push(State(torch.randn(3, 5, 2))).x.shape
        torch.Size([3, 5, 2])
    """

    def __init__(self, ode: ODE, sampler: PathSampler, *, progress: bool = False) -> None:
        super().__init__()
        if not isinstance(ode.manifold, Euclidean):
            raise DomainError(
                "SampledTransport: samplers mix the ends of a path and need flat space, got "
                f"{type(ode.manifold).__name__}; solve the ODE there"
            )
        self.ode = ode
        self.sampler = sampler
        self.progress = progress

    def push(
        self, state: State, context: Tensor | None = None, *, generator: Generator | None = None
    ) -> State:
        if state.ladj is not None:
            self._refuse("push")
        x = state.x
        batch = tuple(x.shape[: x.dim() - self.ode.manifold.ndim])
        flat = lambda leaf: leaf.flatten(0, len(batch) - 1) if batch else leaf[None]
        x = self.sampler.sample(
            self.ode.field,
            flat(x),
            None if context is None else flat(context),
            generator=generator,
            progress=self.progress,
        )
        return state._replace(x=x.unflatten(0, batch) if batch else x[0])

    def pull(
        self, state: State, context: Tensor | None = None, *, generator: Generator | None = None
    ) -> State:
        self._refuse("pull")

    @property
    def likelihood(self) -> Likelihood:
        self._refuse("likelihood")

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.ode.out_shape(shape)

    def _refuse(self, method: str) -> NoReturn:
        raise DomainError(
            f"SampledTransport.{method}: a sampler carries points and no density; use sample or "
            "rsample here, and ask the flow with its own solver for log_prob and pull"
        )


def with_sampler(flow: Flow, sampler: PathSampler, *, progress: bool = False) -> Flow:
    """Return a flow that shares all modules and draws by a sampler; the flow stays as it is.

    Its `log_prob`, `pull` and `sample_and_log_prob` refuse in words.

    Args:
        flow: A flow whose transport is an ODE, or a chain with one ODE in it.
        sampler: How the points are drawn; its schedule is the one that the field was trained on.
        progress: Show a bar of the steps where there is a terminal.

    Raises:
        DomainError: There is not exactly one ODE, it runs on a manifold, or the sampler draws
            noise and what the ODE starts from is no standard normal law.

    Example:
        >>> from cflow.field import MLPField
        >>> from cflow.samples import CurvedEuler
        >>> flow = Flow(Gaussian(2), ODE(MLPField(2)))
        >>> with_sampler(flow, CurvedEuler(4)).sample(5).shape
        torch.Size([5, 2])
    """
    found: list[Transport] = []

    def by_sampler(part: Transport) -> Transport | None:
        if not isinstance(part, ODE):
            return None
        found.append(part)
        return SampledTransport(part, sampler, progress=progress)

    transport = exchanged(flow.transport, by_sampler)
    if len(found) != 1:
        raise DomainError(
            f"with_sampler: the flow must have exactly one ODE to be sampled, found {len(found)} "
            f"in {type(flow.transport).__name__}"
        )
    if sampler.random and not (_standard(flow.base) and _first(flow.transport) is found[0]):
        raise DomainError(
            f"with_sampler: {type(sampler).__name__} draws standard normal noise, so the ODE must "
            f"start from a Gaussian base, got {type(flow.base).__name__} before "
            f"{type(_first(flow.transport)).__name__}; take CurvedEuler or CurvedHeun"
        )
    return rebuilt(flow, transport)


def rebuilt(flow: Flow, transport: Transport) -> Flow:
    """Return the flow with another transport; modules are shared, so its mode is set by hand."""
    again = Flow(flow.base, transport, context_shape=flow.context_shape)
    again.training = flow.training
    return again


def _standard(base: Base) -> bool:
    """Say whether a law is standard normal, at a temperature or not."""
    return isinstance(base.base if isinstance(base, Tempered) else base, Gaussian)


def _first(transport: Transport) -> Transport:
    """Return the transport on the base side."""
    while isinstance(transport, Chain) and len(transport):
        transport = transport[0]
    return transport
