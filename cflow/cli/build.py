"""From data and the name of a recipe to a flow of that data: sizes, levels and contexts inferred.

table (n, d)         --> standardized(recipe(features=d)); recipe(features=d) on a manifold
integers (n, h, w)   --> images(recipe(features=h w), (h, w)), or recipe(shape=(h, w))
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cflow import recipes
from cflow.cli.arguments import find_recipe, parameters
from cflow.cli.arrays import one_hot
from cflow.cli.points import brought, on_manifold
from cflow.errors import DomainError, ShapeError
from cflow.flow import Flow
from cflow.jump import JumpFlow

__all__ = ["Built", "build", "classes_of"]

BYTE = 256


class Built(NamedTuple):
    """Hold a flow, and the data and the conditions as it takes them."""

    flow: Flow
    x: Tensor
    context: Tensor | None


def build(
    name: str,
    arguments: Mapping[str, Any],
    x: Tensor,
    context: Tensor | None,
    *,
    levels: int | None = None,
    standardize: bool = True,
    project: bool = False,
) -> Built:
    """Build the flow of a recipe for some data; what is given as an argument is not inferred.

    Integers with two axes or more to a point are grey levels, and dequantised. Integers in a table
    are numbers like others, unless `levels` says that they are levels too.

    Args:
        name: The recipe, of vectors (`features`) or of images (`shape`).
        arguments: Arguments of the recipe.
        x: Data `(n, *event)`, two axes at least.
        context: Conditions `(n, *context)`; one whole number each is a class label.
        levels: Number of grey levels; by default what the data needs, 256 from 128 on.
        standardize: Let tables be standardised by the flow itself.
        project: Bring points to the manifold of the flow.

    Raises:
        DomainError: The recipe is unknown or does not go with the data, or takes no context; or
            points lie off the manifold.
        ShapeError: There are not as many conditions as points.
    """
    recipe, given, event = find_recipe(name), dict(arguments), tuple(x.shape[1:])
    takes = parameters(recipe)
    if context is not None:
        context = _condition(name, given, context, len(x))
    grey = not x.is_floating_point() and (len(event) > 1 or levels is not None)
    if "levels" in takes:
        if grey:
            given["levels"] = _levels(x, given.get("levels", levels))
        elif takes["levels"].default is not None:
            raise DomainError(f"train: {name} takes images of integers, got {x.dtype}; save levels")
    if "shape" in takes:
        given.setdefault("shape", event)
        flow = recipe(**given)
    else:
        if "features" in takes:
            given.setdefault("features", math.prod(event))
        flow = recipe(**given)
        if grey:
            flow = recipes.images(flow, event, levels=_levels(x, levels))
        elif standardize and len(event) == 1 and not on_manifold(flow):
            flow = recipes.standardized(flow)
    if flow.event_shape != event:
        raise ShapeError(
            f"train: points of the data have shape {event}, but {name} makes points of shape "
            f"{flow.event_shape}; leave out what says so, or give images as integers or to unet, "
            "dit or tarflow"
        )
    x = x if grey else x.to(torch.get_default_dtype())
    return Built(flow, brought("train", flow, x, project=project), context)


def classes_of(flow: Flow | JumpFlow) -> int:
    """Return the number of classes whose labels are the context of a flow, or 0.

    Example:
        >>> classes_of(recipes.glow((4, 4), 10, scales=1, steps=1, hidden_channels=4))
        10
    """
    described = None if flow.recipe is None else flow.recipe.describe()
    while described is not None:
        arguments = described["arguments"]
        if arguments.get("classes"):
            return arguments["classes"]
        described = arguments["flow"]["recipe"] if "flow" in arguments else None
    return 0


def _condition(name: str, given: dict[str, Any], context: Tensor, n: int) -> Tensor:
    """Write into the arguments what the recipe has to know of the conditions."""
    if len(context) != n:
        raise ShapeError(f"train: needs one condition for each of {n} points, got {len(context)}")
    takes = parameters(find_recipe(name))
    if not context.is_floating_point() and context.shape[1:] == (1,):
        labels = context[:, 0].long()
        low, high = int(labels.min()), int(labels.max())
        for key in ("classes", "context"):
            if key not in takes:
                continue
            classes = given.setdefault(key, high + 1)
            if low < 0 or high >= classes:
                found = low if low < 0 else high
                raise DomainError(f"train: labels must lie in 0 .. {classes - 1}, got {found}")
            return labels if key == "classes" else one_hot(labels, classes)
    context = context.to(torch.get_default_dtype())
    if "context" in takes and context.dim() == 2:
        given.setdefault("context", context.shape[1])
        return context
    if "context_shape" in takes:
        given.setdefault("context_shape", tuple(context.shape[1:]))
        return context
    raise DomainError(
        f"train: {name} takes no context of shape {tuple(context.shape[1:])}; leave it out, or "
        "give labels or one vector for each point"
    )


def _levels(x: Tensor, levels: int | None) -> int:
    low, high = int(x.min()), int(x.max())
    found = levels or (BYTE if BYTE // 2 <= high < BYTE else high + 1)
    if low < 0 or high >= found:
        raise DomainError(
            f"train: grey levels must lie in 0 .. {found - 1}, got {low if low < 0 else high}; "
            "say how many there are by --levels"
        )
    return max(2, found)
