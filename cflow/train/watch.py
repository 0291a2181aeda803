"""What a training shows of the flow's insides: log-determinants, round trips, saturated scales.

A watch is called at every validation, in evaluation mode, without gradients, with noise of its own,
and returns named figures for the history and the monitor. The training beside it is the same, bit
for bit, as without.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Generator, Tensor, nn

from cflow.errors import DomainError, TrainingError, expect_positive
from cflow.flow import Flow
from cflow.state import State, tracked
from cflow.transport import AffineMap, Chain, Inverse, Transport, UnivariateMap

__all__ = ["LayerStatistics", "Reconstruction", "ScaleSaturation", "Watch", "observe"]

SEED = 20_250_102  # of the noise that watches see


@runtime_checkable
class Watch(Protocol):
    """Anything that looks at a model and returns figures."""

    def __call__(self, model: nn.Module, *, generator: Generator) -> Mapping[str, float]:
        """Return named figures; may raise `TrainingError` to end the training."""
        ...


@dataclass(frozen=True)
class LayerStatistics:
    """Follow the log-determinant of each part of the chain: mean, spread and largest size.

    A sudden jump of one layer is the first sign of a numerical problem. Names read
    `ladj/<position in push order> <class>/<figure>`; nats per point, of the pull.

    Attributes:
        batch: Points on the data side, `(n, *event)`.
        context: Their conditions.

    Example:
        >>> from cflow.base import Gaussian
        >>> from cflow.transport import Affine
        >>> flow = Flow(Gaussian(2), Chain(Affine(2.0)))
        >>> g = torch.Generator()
        >>> LayerStatistics(torch.zeros(4, 2))(flow, generator=g)["ladj/0 Affine/mean"]
        -1.3862943649291992
    """

    batch: Tensor
    context: Tensor | None = None

    def __call__(self, model: nn.Module, *, generator: Generator) -> dict[str, float]:
        """Return mean, standard deviation and largest absolute value for each part."""
        flow = _flow("LayerStatistics", model)
        parts = list(_links(flow.transport))
        state = tracked(self.batch, event_dim=len(flow.event_shape))
        figures: dict[str, float] = {}
        for position in reversed(range(len(parts))):
            before = cast(Tensor, state.ladj)
            state = parts[position].pull(state, self.context, generator=generator)
            own = cast(Tensor, state.ladj) - before
            name = f"ladj/{position} {_name(parts[position])}"
            figures[f"{name}/mean"] = own.mean().item()
            figures[f"{name}/std"] = own.std(correction=0).item()
            figures[f"{name}/max"] = own.abs().max().item()
        return figures


@dataclass(frozen=True)
class Reconstruction:
    """Follow the largest error of a pull followed by a push, and raise the alarm in time.

    Stochastic parts at the data end (dequantisation) are pulled through and left out of the round
    trip. The default levels are for standardised points in exact layers. In float32 the error of a
    good flow grows with the points, 1e-7 of their size for each layer or so: hand in their size as
    `scale`. An ODE comes back up to the error of its solver only, so give it levels of its own.

    Attributes:
        batch: Points on the data side, `(n, *event)`.
        context: Their conditions.
        alarm: Error, in units of the scale, above which each call warns.
        error: Error above which the training ends.
        scale: Size of the points.
    """

    batch: Tensor
    context: Tensor | None = None
    alarm: float = 1e-5
    error: float = 1e-3
    scale: float = 1.0

    def __post_init__(self) -> None:
        expect_positive("Reconstruction", alarm=self.alarm, error=self.error, scale=self.scale)

    def __call__(self, model: nn.Module, *, generator: Generator) -> dict[str, float]:
        """Return the largest error over all entries, in units of the scale.

        Raises:
            TrainingError: It is above `error`, or not a number.
        """
        flow = _flow("Reconstruction", model)
        parts = list(_links(flow.transport))
        first = next((k for k, part in enumerate(parts) if part.likelihood == "bound"), len(parts))
        x = Chain(*parts[first:]).pull(State(self.batch), self.context, generator=generator).x
        exact = Chain(*parts[:first])
        x0 = exact.pull(State(x), self.context, generator=generator).x
        back = exact.push(State(x0), self.context, generator=generator).x
        worst = ((back - x).abs().max() / self.scale).item()
        if not worst <= self.error:
            raise TrainingError(
                f"Reconstruction: a pull followed by a push errs by {worst:.3g}, above "
                f"{self.error:g}; the flow is no longer invertible in {x.dtype}: bound its scales, "
                "clip the gradient, lower the rate, or use float64"
            )
        if worst > self.alarm:
            warnings.warn(
                f"Reconstruction: a pull followed by a push errs by {worst:.3g}, above "
                f"{self.alarm:g}",
                stacklevel=2,
            )
        return {"reconstruction": worst}


@dataclass(frozen=True)
class ScaleSaturation:
    """Follow the share of affine log-scales that press against their bound, |s| > level bound.

    Scales at their bound no longer learn: raise the bound, or look for outliers in the data.

    Attributes:
        batch: Points on the data side, `(n, *event)`.
        context: Their conditions.
        level: Share of the bound from which a scale counts as saturated.
    """

    batch: Tensor
    context: Tensor | None = None
    level: float = 0.95

    def __call__(self, model: nn.Module, *, generator: Generator) -> dict[str, float]:
        """Return the share over all layers with an `AffineMap`, points and entries.

        Raises:
            DomainError: There is no such layer.
        """
        flow = _flow("ScaleSaturation", model)
        layers: list[Any] = [
            m for m in flow.modules() if isinstance(getattr(m, "univariate", None), AffineMap)
        ]
        if not layers:
            raise DomainError("ScaleSaturation: the flow has no layer with an AffineMap to watch")
        maps = [layer.univariate for layer in layers]
        shares: list[Tensor] = []
        try:
            for layer, inner in zip(layers, maps, strict=True):
                layer.univariate = _Recording(inner, self.level, shares)
            flow.pull(self.batch, self.context, generator=generator)
        finally:
            for layer, inner in zip(layers, maps, strict=True):
                layer.univariate = inner
        return {"saturated_scales": torch.cat(shares).mean().item()}


@dataclass(frozen=True)
class _Recording(UnivariateMap):
    """An affine map that writes down which of its log-scales are near their bound."""

    inner: AffineMap
    level: float
    found: list[Tensor] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        return self.inner.parameters

    def push(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self._noted(*self.inner.push(x, theta))

    def pull(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self._noted(*self.inner.pull(y, theta))

    def _noted(self, moved: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        self.found.append((log_scale.abs() > self.level * self.inner.bound).flatten().float())
        return moved, log_scale


def observe(watches: Sequence[Watch], model: nn.Module, device: torch.device) -> dict[str, float]:
    """Call watches and leave everything as it was: modes, gradients, random state.

    Raises:
        TrainingError: A watch ended the training.
    """
    modes = {module: module.training for module in model.modules()}
    devices = [device] if device.type == "cuda" else []
    figures: dict[str, float] = {}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            for watch in watches:
                generator = torch.Generator(device).manual_seed(SEED)
                figures |= watch(model, generator=generator)
    finally:
        for module, training in modes.items():
            module.training = training
    return figures


def _flow(where: str, model: nn.Module) -> Flow:
    if not isinstance(model, Flow):
        raise DomainError(f"{where}: watches a Flow, got {type(model).__name__}")
    return model


def _name(part: Transport) -> str:
    inverse = isinstance(part, Inverse)
    return f"inverse {_name(part.transport)}" if inverse else type(part).__name__


def _links(transport: Transport) -> Iterator[Transport]:
    """List the links of nested chains in push order."""
    if isinstance(transport, Chain):
        for part in transport:
            yield from _links(part)
    else:
        yield transport
