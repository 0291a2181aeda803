"""Recipes: functions that return a flow, remembered by name so that it can be saved as data.

A recipe's arguments are numbers, strings, sequences, option objects (solvers, divergences,
schedules) and flows made by recipes. `describe` writes them as JSON; `load` looks every name up in
a fixed table and calls nothing else, so a file cannot execute anything.
"""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, overload

from torch import nn

from cflow import archive, ode
from cflow.errors import CheckpointError, DomainError
from cflow.field import (
    Analytic,
    CosineSchedule,
    CostSum,
    Exact,
    Hutchinson,
    JacobianNorm,
    KineticEnergy,
    LinearSchedule,
    LinearVPSchedule,
    LipmanSchedule,
    PolynomialSchedule,
    VPSchedule,
)
from cflow.flow import Flow
from cflow.jump import JumpFlow, KineticSchedule
from cflow.transport import ExactLogDet, FixedPoint, Geometric, Poisson, RussianRoulette

__all__ = ["load", "load_any", "recipe"]

P = ParamSpec("P")
F = TypeVar("F", bound=Flow | JumpFlow)
M = TypeVar("M", bound=nn.Module)

RECIPES: dict[str, Callable[..., Flow | JumpFlow]] = {}

SOLVERS = (
    ode.Euler,
    ode.Midpoint,
    ode.Heun,
    ode.RK4,
    ode.AdamsBashforth2,
    ode.AdamsBashforth3,
    ode.Tuned,
    ode.Dopri5,
    ode.Tsit5,
    ode.BogackiShampine,
    ode.Reversible,
    ode.PIController,
)
GRIDS = (ode.UniformGrid, ode.CosineGrid, ode.EDMGrid, ode.TimeGrid)
ADJOINTS = (ode.Direct, ode.Checkpoint, ode.Backsolve)
FIELDS = (Exact, Hutchinson, Analytic, KineticEnergy, JacobianNorm, CostSum)
RESIDUALS = (ExactLogDet, RussianRoulette, Geometric, Poisson, FixedPoint)
SCHEDULES = (  # all that hold numbers alone
    LinearSchedule,
    PolynomialSchedule,
    CosineSchedule,
    VPSchedule,
    LinearVPSchedule,
    LipmanSchedule,
    KineticSchedule,
)

OPTIONS: dict[str, type] = {
    option.__name__: option
    for option in (*SOLVERS, *GRIDS, *ADJOINTS, *FIELDS, *RESIDUALS, *SCHEDULES)
}


@dataclasses.dataclass(frozen=True)
class Called:
    """A recipe and the arguments it was called with."""

    name: str
    arguments: Mapping[str, Any]

    def describe(self) -> dict[str, Any]:
        """Return name and arguments as JSON can hold them."""
        where = f"recipe {self.name}"
        arguments = {name: _encode(where, value) for name, value in self.arguments.items()}
        return {"name": self.name, "arguments": arguments}


def recipe(function: Callable[P, F]) -> Callable[P, F]:
    """Register a function under its name, and let the flows it returns remember its arguments.

    Example:
        >>> from cflow.base import Gaussian
        >>> from cflow.transport import Affine
        >>> @recipe
        ... def stretched(features: int, factor: float = 2.0) -> Flow:
        ...     return Flow(Gaussian(features), Affine(factor))
        >>> stretched(3).recipe.describe()
        {'name': 'stretched', 'arguments': {'features': 3, 'factor': 2.0}}
    """
    name = function.__name__
    signature = inspect.signature(function)

    @functools.wraps(function)
    def build(*args: P.args, **kwargs: P.kwargs) -> F:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        flow = function(*args, **kwargs)
        flow.recipe = Called(name, dict(bound.arguments))
        return flow

    RECIPES[name] = build
    return build


@overload
def load(path: str | os.PathLike[str]) -> Flow: ...
@overload
def load(path: str | os.PathLike[str], kind: type[F]) -> F: ...
@overload
def load(path: str | os.PathLike[str], *, into: M) -> M: ...
def load(
    path: str | os.PathLike[str],
    kind: type[Flow | JumpFlow] = Flow,
    *,
    into: nn.Module | None = None,
) -> nn.Module:
    """Read a flow that `save` of `Flow`, `JumpFlow` or `MixedFlow` wrote.

    Args:
        path: The file.
        kind: What it holds: a `Flow`, or a `JumpFlow` of tokens, `load(path, JumpFlow)`.
        into: A flow of the same build to fill, for flows that no recipe built; their weights are
            copied into it.

    Returns:
        The flow, on the CPU, in the dtype that it was saved in and in evaluation mode, or `into`.

    Raises:
        CheckpointError: The file is missing, truncated, made by an unknown recipe, or holds the
            weights of another model, or a flow of the other kind.

    Example:
        >>> import tempfile
        >>> from cflow import JumpFlow, recipes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     recipes.token_mlp(2, 5).save(f"{folder}/tokens.safetensors")
        ...     load(f"{folder}/tokens.safetensors", JumpFlow).event_shape
        (2,)
    """
    if into is not None:
        tensors, _ = archive.read(path)
        archive.expect_same_tensors(str(path), into.state_dict(), tensors)
        into.load_state_dict(tensors)
        return into
    flow = load_any(path)
    if not isinstance(flow, kind):
        holds, wanted = type(flow).__name__, kind.__name__
        raise CheckpointError(
            f"cannot load {path}: it holds a {holds}, not a {wanted}; ask for it by "
            f"load(path{', JumpFlow' if holds == 'JumpFlow' else ''})"
        )
    return flow


def load_any(path: str | os.PathLike[str]) -> Flow | JumpFlow:
    """Read a flow of either kind that a recipe built; errors are those of `load`."""
    tensors, header = archive.read(path)
    if header["recipe"] is None:
        raise CheckpointError(
            f"cannot load {path}: no recipe built this flow; build one in the same way and "
            "pass it as load(path, into=flow)"
        )
    flow = _rebuild(str(path), header["recipe"])
    archive.expect_same_tensors(str(path), flow.state_dict(), tensors)
    flow.load_state_dict(tensors, assign=True)
    return flow.eval()


def _rebuild(path: str, described: Mapping[str, Any]) -> Flow | JumpFlow:
    name = described["name"]
    if name not in RECIPES:
        raise CheckpointError(
            f"cannot load {path}: unknown recipe {name!r}; known are {sorted(RECIPES)}, import the "
            "module that defines it first"
        )
    arguments = {key: _decode(path, value) for key, value in described["arguments"].items()}
    try:
        return RECIPES[name](**arguments)
    except TypeError as error:
        raise CheckpointError(
            f"cannot load {path}: recipe {name!r} does not take its arguments ({error})"
        ) from error


def _encode(where: str, value: Any) -> Any:  # noqa: ANN401
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Flow | JumpFlow) and value.recipe is not None:
        return {"recipe": value.recipe.describe()}
    if isinstance(value, Sequence):
        return [_encode(where, entry) for entry in value]
    if dataclasses.is_dataclass(value) and OPTIONS.get(type(value).__name__) is type(value):
        fields = {}
        for field in dataclasses.fields(value):
            entry = getattr(value, field.name)
            if entry != field.default:
                fields[field.name] = _encode(f"{where}, {type(value).__name__}", entry)
        return {"option": type(value).__name__, "fields": fields}
    raise DomainError(
        f"{where}: an argument of type {type(value).__name__} cannot be saved as data; save the "
        "flow after setting flow.recipe = None and load it with load(path, into=flow)"
    )


def _decode(path: str, value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, list):
        return tuple(_decode(path, entry) for entry in value)
    if isinstance(value, dict) and "recipe" in value:
        return _rebuild(path, value["recipe"])
    if isinstance(value, dict):
        if value.get("option") not in OPTIONS:
            raise CheckpointError(f"cannot load {path}: unknown option {value.get('option')!r}")
        fields = {name: _decode(path, entry) for name, entry in value["fields"].items()}
        return OPTIONS[value["option"]](**fields)
    return value
