"""The contractive residual layer: the identity plus a network of Lipschitz constant below one.

    push: y = x + g(x, context),    pull: the fixed point of x = y - g(x, context)

Invertible by Banach's theorem, with no part of the point frozen and no order among its entries. The
push is one pass; in a recipe that is fast for densities the layer stands in an `Inverse`.
Source: Behrmann et al. (2019), Invertible residual networks, arXiv 1811.00995; Chen et al. (2019),
Residual flows for invertible generative modeling, arXiv 1906.02735.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from cflow.errors import DomainError, ShapeError, expect_floating
from cflow.nets import Contraction
from cflow.state import State
from cflow.transport.contraction import Arrival, FixedPoint, implicit
from cflow.transport.exchange import exchanged
from cflow.transport.series import ExactLogDet, LogDet
from cflow.transport.transport import Likelihood, Shape, Transport

__all__ = ["ResidualLayer", "with_logdet"]


class ResidualLayer(Transport):
    """Add a contraction to the point.

    Points travel through the network in float32 at least. With `ExactLogDet` the push, tracked or
    not, compiles as one graph and works under `torch.func`; the pull iterates until every sample
    has arrived, a data-dependent loop that no trace can hold, and its gradient can be taken once.

    Args:
        net: g, called as `net(x, context)`; a `Contraction`, or any module that the caller knows to
            be one. It must treat samples one by one.
        logdet: How the log-determinant is computed, when it is tracked.
        inverse: How the pull solves for x.
        event_dim: Axes of one point: 1 for vectors, 3 for images.

    References:
        Behrmann et al. (2019), arXiv 1811.00995; Chen et al. (2019), arXiv 1906.02735.

    Example:
        >>> from cflow.nets import LipschitzMLP
        >>> layer, x = ResidualLayer(LipschitzMLP(2)), torch.randn(4, 2)
        >>> torch.allclose(layer.pull(layer.push(State(x))).x, x, atol=1e-4)
        True
    """

    def __init__(
        self,
        net: Callable[[Tensor, Tensor | None], Tensor],
        *,
        logdet: LogDet | None = None,
        inverse: FixedPoint | None = None,
        event_dim: int = 1,
    ) -> None:
        super().__init__()
        self.net = net
        self.logdet = ExactLogDet() if logdet is None else logdet
        self.inverse = FixedPoint() if inverse is None else inverse
        self.event_dim = event_dim

    def push(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        batch, x = self._enter("push", state, context)
        g = self._prepared()
        if state.ladj is None:
            return state._replace(x=(x + self._same_shape(x, g(x, context))).to(state.x.dtype))
        noise = self.logdet.draw(x, len(batch), generator)
        value, ladj = self.logdet(lambda z: g(z, context), x, len(batch), noise)
        y = (x + self._same_shape(x, value)).to(state.x.dtype)
        return state._replace(x=y, ladj=state.ladj + ladj)

    def pull(
        self,
        state: State,
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> State:
        """Solve for the points before the push; arguments as there.

        Raises:
            SolverError: A sample did not arrive, here or, for its gradient, in backward.
        """
        batch, y = self._enter("pull", state, context)
        g = self._prepared()
        rows, given = _rows(y, batch), None if context is None else _rows(context, batch)
        arrival = self.inverse.solve(g, rows, given)
        self.inverse.expect_arrival("ResidualLayer.pull", arrival)
        solution = arrival.x
        if torch.is_grad_enabled():
            solution = implicit(self.inverse, g, rows, given, solution)
        x = solution.reshape(y.shape)
        if state.ladj is None:
            return state._replace(x=x.to(state.x.dtype))
        noise = self.logdet.draw(x, len(batch), generator)
        _, ladj = self.logdet(lambda z: g(z, context), x, len(batch), noise)
        return state._replace(x=x.to(state.x.dtype), ladj=state.ladj - ladj)

    def solve(self, y: Tensor, context: Tensor | None = None) -> Arrival:
        """Solve for the points before the push, and report residual and steps of each sample.

        Samples that do not arrive are marked, and raise nothing; batch axes are flattened to one.
        """
        batch, y = self._enter("solve", State(y), context)
        given = None if context is None else _rows(context, batch)
        return self.inverse.solve(self._prepared(), _rows(y, batch), given)

    @property
    def likelihood(self) -> Likelihood:
        return self.logdet.likelihood

    def out_shape(self, shape: Shape) -> Shape:
        return shape

    def _prepared(self) -> Callable[[Tensor, Tensor | None], Tensor]:
        return self.net.prepared() if isinstance(self.net, Contraction) else self.net

    def _enter(self, method: str, state: State, context: Tensor | None) -> tuple[Shape, Tensor]:
        """Return the batch axes, and the points in full precision."""
        where, x = f"ResidualLayer.{method}", state.x
        expect_floating(where, x)
        if x.dim() < self.event_dim:
            raise ShapeError(
                f"{where}: points need at least {self.event_dim} axes, got {tuple(x.shape)}"
            )
        batch = tuple(x.shape[: x.dim() - self.event_dim])
        if context is not None and tuple(context.shape[: len(batch)]) != batch:
            raise ShapeError(
                f"{where}: the context must have the batch axes {batch} of the points, got "
                f"{tuple(context.shape)}; expand it to them"
            )
        return batch, x.to(torch.promote_types(x.dtype, torch.float32))

    def _same_shape(self, x: Tensor, value: Tensor) -> Tensor:
        if value.shape != x.shape:
            raise ShapeError(
                f"ResidualLayer: the network must keep the shape {tuple(x.shape)} of the points, "
                f"got {tuple(value.shape)}"
            )
        return value


def with_logdet(transport: Transport, logdet: LogDet) -> Transport:
    """Return the transport with every residual layer's log-determinant computed in another way.

    All modules are shared: a flow that was trained on estimates is evaluated exactly by
    `Flow(flow.base, with_logdet(flow.transport, ExactLogDet()))`.

    Args:
        transport: A residual layer, or any transport that holds some.
        logdet: How their log-determinants are computed.

    Raises:
        DomainError: There is no residual layer within reach.

    Example:
        >>> from cflow.nets import LipschitzMLP
        >>> from cflow.transport import RussianRoulette
        >>> layer = ResidualLayer(LipschitzMLP(2), logdet=RussianRoulette())
        >>> layer.likelihood, with_logdet(layer, ExactLogDet()).likelihood
        ('estimate', 'exact')
    """

    def again(part: Transport) -> Transport | None:
        if not isinstance(part, ResidualLayer):
            return None
        return ResidualLayer(
            part.net, logdet=logdet, inverse=part.inverse, event_dim=part.event_dim
        )

    found = exchanged(transport, again)
    if found is transport:
        raise DomainError(
            f"with_logdet: there is no ResidualLayer in {type(transport).__name__}, so nothing to "
            "compute in another way"
        )
    return found


def _rows(leaf: Tensor, batch: Shape) -> Tensor:
    """Gather any number of batch axes, none included, into one."""
    return leaf.flatten(0, len(batch) - 1) if batch else leaf[None]
