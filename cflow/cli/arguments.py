"""Arguments of recipes as they are typed, `name=value`: read as data, held against the signature.

A value is a Python literal, a bare word (a string), or an option object such as `RK4(8)`; option
names are looked up in the table of the recipes and nothing else is called.
"""

import ast
import difflib
import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from cflow.errors import DomainError
from cflow.flow import Flow
from cflow.jump import JumpFlow
from cflow.recipes.recipe import OPTIONS, RECIPES

__all__ = ["find_recipe", "fits", "known_or_nearest", "parameters", "read_arguments"]


def known_or_nearest(where: str, what: str, name: str, table: Iterable[str]) -> None:
    """Raise `DomainError` unless the name is in the table; say which one is nearest.

    Example:
        >>> known_or_nearest("train", "recipe", "nfs", ["maf", "nsf"])
        Traceback (most recent call last):
        cflow.errors.DomainError: train: unknown recipe 'nfs', did you mean 'nsf'? Known: maf, nsf
    """
    known = sorted(table)
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f", did you mean {near[0]!r}? Known" if near else "; known"
    raise DomainError(f"{where}: unknown {what} {name!r}{hint}: {', '.join(known)}")


def find_recipe(name: str) -> Callable[..., Flow]:
    """Return the recipe of that name, one that builds a flow of points from numbers alone.

    Raises:
        DomainError: There is none, or it makes tokens.

    Example:
        >>> find_recipe("nsf")(2, transforms=1, hidden_features=(8,)).event_shape
        (2,)
    """
    if name in RECIPES and "vocabulary" in parameters(RECIPES[name]):
        raise DomainError(
            f"train: {name} makes tokens, which this command does not train; call "
            f"cflow.recipes.{name} in a script, with the loss cflow.jump.negative_elbo"
        )
    whole = [
        key
        for key, build in RECIPES.items()
        if not {"flow", "vocabulary"} & parameters(build).keys()
    ]
    known_or_nearest("train", "recipe", name, whole)
    return cast(Callable[..., Flow], RECIPES[name])


def parameters(build: Callable[..., Flow | JumpFlow]) -> Mapping[str, inspect.Parameter]:
    """Return what a recipe takes, by name."""
    return inspect.signature(build).parameters


def read_arguments(name: str, given: Sequence[str]) -> dict[str, Any]:
    """Read `name=value` words as arguments of a recipe.

    Args:
        name: The recipe.
        given: The words.

    Raises:
        DomainError: A word is not of that form, names no argument of the recipe, comes twice, or
            its value cannot be read or is of another type than the recipe takes.

    Example:
        >>> read_arguments("nsf", ["transforms=5", "hidden_features=(64, 64)", "kind=coupling"])
        {'transforms': 5, 'hidden_features': (64, 64), 'kind': 'coupling'}
    """
    build = find_recipe(name)
    hints = get_type_hints(build)
    found: dict[str, Any] = {}
    for word in given:
        key, equals, text = (part.strip() for part in word.partition("="))
        if not equals or not text:
            raise DomainError(f"train: -a takes name=value, got {word!r}; such as -a transforms=5")
        known_or_nearest("train", f"argument of {name}", key, parameters(build))
        if key in found:
            raise DomainError(f"train: argument {key} of {name} is given twice")
        value = _read(word, text)
        if not fits(value, hints[key]):
            wanted = _spelled(hints[key])
            raise DomainError(f"train: {key} of {name} must be {wanted}, got {text}")
        found[key] = value
    return found


def fits(value: Any, kind: Any) -> bool:  # noqa: ANN401
    """Tell whether a value is of the type that a signature names.

    Example:
        >>> from collections.abc import Sequence
        >>> fits((1, 2), Sequence[int]), fits(2, float), fits(2.5, int), fits(None, int | None)
        (True, True, False, True)
    """
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in get_args(kind))
    if origin is Literal:
        return value in get_args(kind)
    if origin is not None:  # a sequence of one type
        inner = get_args(kind)[0]
        return isinstance(value, tuple) and all(fits(entry, inner) for entry in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _read(word: str, text: str) -> Any:  # noqa: ANN401
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError, RecursionError) as error:
        raise DomainError(
            f"train: cannot read the value in -a {word!r} ({error}); it takes a number, a word, a "
            'tuple such as "(64, 64)", or an option such as "RK4(8)"'
        ) from error


def _value(node: ast.expr) -> Any:  # noqa: ANN401
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_value(entry) for entry in node.elts)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        known_or_nearest("train", "option", node.func.id, OPTIONS)
        named = {entry.arg: _value(entry.value) for entry in node.keywords if entry.arg}
        return OPTIONS[node.func.id](*(_value(entry) for entry in node.args), **named)
    return ast.literal_eval(node)


def _spelled(kind: Any) -> str:  # noqa: ANN401
    """Write a type without the modules that its parts come from."""
    return re.sub(r"(\w+\.)+", "", inspect.formatannotation(kind))
