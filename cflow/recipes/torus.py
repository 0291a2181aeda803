"""Flows on angles: circular splines, autoregressive or in coupling layers, that come round.

Networks see the angles as waves, and the maps close on themselves, so the density is continuous
across every seam. Features on a line may stand beside the angles.
Source: Rezende et al. (2020), Normalizing flows on tori and spheres, arXiv 2002.02428, section 2;
Durkan et al. (2019), Neural spline flows, arXiv 1906.04032.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from cflow.base import Base, Gaussian, Joint, ManifoldUniform
from cflow.errors import DomainError
from cflow.flow import Flow
from cflow.manifold import Torus
from cflow.nets import MLP, Embedded, MaskedMLP, PeriodicFeatures, adjacency_of_order
from cflow.recipes.orientation import Fast, oriented
from cflow.recipes.recipe import recipe
from cflow.transport import (
    AutoregressiveLayer,
    Chain,
    CircularSplineMap,
    CouplingLayer,
    FeaturewiseMap,
    MoebiusMap,
    RationalQuadraticMap,
    Transport,
    UnivariateMap,
)

__all__ = ["torus_moebius", "torus_nsf"]

Kind: TypeAlias = Literal["autoregressive", "coupling"]


@recipe
def torus_nsf(
    features: int,
    context: int = 0,
    *,
    linear: int = 0,
    kind: Kind = "autoregressive",
    transforms: int = 5,
    hidden_features: Sequence[int] = (128, 128),
    bins: int = 8,
    bound: float = 5.0,
    frequencies: int = 3,
    residual: bool = False,
    fast: Fast = "density",
) -> Flow:
    """Build a neural spline flow on angles in [0, 2 pi), and on numbers that stand behind them.

    It starts as the uniform law of the angles and a standard normal one of the numbers.

    Args:
        features: Angles of a point; coupling layers need 2 features in all.
        context: Length of the context vector; 0 for an unconditional flow.
        linear: Numbers on a line, such as lengths, that follow the angles in a point; standardise
            them first.
        kind: Which layers. Coupling layers take one pass in either direction; autoregressive ones
            read the features in turn forwards and backwards, fit better, and invert one by one.
        transforms: Number of layers.
        hidden_features: Widths of each conditioner's hidden layers.
        bins: Pieces of each spline.
        bound: Half the side of the box in which splines bend the numbers on a line.
        frequencies: Waves by which a network sees an angle: sin(k x) and cos(k x) up to this k.
        residual: Join equal widths of the conditioners by skip connections.
        fast: Which direction takes one pass.

    Raises:
        DomainError: Too few features, or no transform, or an unknown kind.

    Example:
        >>> flow = torus_nsf(2, transforms=2, hidden_features=(16,))
        >>> flow.log_prob(torch.tensor([[0.0, 1.0]]))  # -2 log(2 pi) before training
        tensor([-3.6758], grad_fn=<AddBackward0>)
    """
    return _torus_flow(
        "torus_nsf",
        features,
        context,
        CircularSplineMap(bins=bins),
        linear=(RationalQuadraticMap(bins=bins, bound=bound),) * linear,
        kind=kind,
        transforms=transforms,
        hidden_features=hidden_features,
        frequencies=frequencies,
        residual=residual,
        fast=fast,
    )


@recipe
def torus_moebius(
    features: int,
    context: int = 0,
    *,
    kind: Kind = "autoregressive",
    transforms: int = 5,
    hidden_features: Sequence[int] = (128, 128),
    units: int = 8,
    frequencies: int = 3,
    residual: bool = False,
    fast: Fast = "density",
) -> Flow:
    """Build a flow on angles in [0, 2 pi) of mixed Moebius maps; it starts as the uniform law.

    Densities are smooth, where those of splines have kinks; the other direction is a search.

    Args:
        features: Angles of a point; coupling layers need 2.
        context: Length of the context vector; 0 for an unconditional flow.
        kind: Which layers, as for `torus_nsf`.
        transforms: Number of layers.
        hidden_features: Widths of each conditioner's hidden layers.
        units: Moebius maps in each mixture.
        frequencies: Waves by which a network sees an angle.
        residual: Join equal widths of the conditioners by skip connections.
        fast: Which direction is the closed form.

    Raises:
        DomainError: Too few features, or no transform, or an unknown kind.

    Example:
        >>> torus_moebius(2, transforms=2, hidden_features=(16,)).sample(3).shape
        torch.Size([3, 2])
    """
    return _torus_flow(
        "torus_moebius",
        features,
        context,
        MoebiusMap(units=units),
        kind=kind,
        transforms=transforms,
        hidden_features=hidden_features,
        frequencies=frequencies,
        residual=residual,
        fast=fast,
    )


def _torus_flow(
    where: str,
    features: int,
    context: int,
    circular: UnivariateMap,
    *,
    linear: tuple[UnivariateMap, ...] = (),
    kind: Kind,
    transforms: int,
    hidden_features: Sequence[int],
    frequencies: int,
    residual: bool,
    fast: Fast,
) -> Flow:
    if kind not in Kind.__args__:
        raise DomainError(f"{where}: kind must be among {Kind.__args__}, got {kind!r}")
    maps = (circular,) * features + linear
    least = 2 if kind == "coupling" else 1
    if features < 1 or len(maps) < least or transforms < 1:
        raise DomainError(
            f"{where}: needs {least} features, one of them an angle, and 1 transform at least, got "
            f"features={features}, transforms={transforms}"
        )
    flags = torch.arange(len(maps)) < features
    parts: list[Transport] = []
    for k in range(transforms):
        if kind == "coupling":
            moved = _split(len(maps), k)
            univariate = _joined([map for map, moves in zip(maps, moved, strict=True) if moves])
            seen = PeriodicFeatures(flags[~moved].tolist(), frequencies=frequencies)
            net = MLP(
                seen.outputs,
                int(moved.sum()) * univariate.parameters,
                context=context,
                hidden_features=hidden_features,
                residual=residual,
                zero_last=True,
            )
            layer = CouplingLayer(moved, Embedded(seen, net), univariate)
        else:
            univariate = _joined(maps)
            order = list(range(len(maps)))
            links = adjacency_of_order(order if k % 2 == 0 else order[::-1])
            seen = PeriodicFeatures(flags.tolist(), frequencies=frequencies)
            net = MaskedMLP(
                seen.spread(links),
                univariate.parameters,
                context=context,
                hidden_features=hidden_features,
                residual=residual,
                zero_last=True,
            )
            layer = AutoregressiveLayer(Embedded(seen, net), univariate, adjacency=links)
        parts.append(oriented(layer, fast))
    base: Base = ManifoldUniform(Torus(), features)
    if linear:
        base = Joint(base, Gaussian(len(linear)))
    return Flow(base, Chain(*parts), context_shape=(context,) if context else None)


def _joined(maps: Sequence[UnivariateMap]) -> UnivariateMap:
    return maps[0] if len(set(maps)) == 1 else FeaturewiseMap(tuple(maps))


def _split(features: int, k: int) -> Tensor:
    """Return what layer k moves: pairs of layers split the features by one bit of their place.

    After as many pairs as places have bits, every two features have stood on different sides.
    """
    bits = max(1, (features - 1).bit_length())
    return ((torch.arange(features) >> (k // 2 % bits)) % 2 == 1) ^ (k % 2 == 1)
