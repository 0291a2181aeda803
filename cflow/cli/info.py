"""`cflow info`: what a file holds, without running it."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tyro.conf import Positional

from cflow.cli.build import classes_of
from cflow.cli.command import Command
from cflow.cli.files import HISTORY, SETTINGS, flow_of, read_json
from cflow.flow import Flow
from cflow.jump import JumpFlow
from cflow.ode import Solver
from cflow.recipes.recipe import RECIPES

__all__ = ["Info", "spelled"]


@dataclass(frozen=True)
class Info(Command):
    """Say what a saved flow, a run folder or an exported file holds.

    Attributes:
        file: A .safetensors file, a run folder, or an exported file.
    """

    EXAMPLE: ClassVar[str] = "cflow info runs/nsf"

    file: Positional[Path]

    def run(self) -> str:
        """Return one line for each fact."""
        flow = flow_of(self.file)
        if flow is None:
            from cflow.export import describe  # torch.export is slow to import

            facts = {"file": str(self.file), **describe(self.file)}
            del facts["cflow"]  # the version of the description
            return _table({name: value for name, value in facts.items() if value is not None})
        return _table({**_facts(flow), **_figures(self.file)})


def spelled(described: Mapping[str, Any] | None) -> str:
    """Write a recipe as it would be called, without what it does anyway.

    Example:
        >>> from cflow import recipes
        >>> spelled(recipes.standardized(recipes.maf(2, transforms=3)).recipe.describe())
        'standardized(maf(2, transforms=3))'
    """
    if described is None:
        return "none: weights alone"
    takes = inspect.signature(RECIPES[described["name"]]).parameters
    parts = []
    for name, value in described["arguments"].items():
        required = takes[name].default is inspect.Parameter.empty
        if required or value != _listed(takes[name].default):
            parts.append(_value(value) if required else f"{name}={_value(value)}")
    return f"{described['name']}({', '.join(parts)})"


def _value(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, dict) and "recipe" in value:
        return spelled(value["recipe"])
    if isinstance(value, dict):
        fields = ", ".join(f"{key}={_value(entry)}" for key, entry in value["fields"].items())
        return f"{value['option']}({fields})"
    if isinstance(value, list):
        return f"({', '.join(map(_value, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def _listed(default: Any) -> Any:  # noqa: ANN401
    return list(default) if isinstance(default, tuple) else default


def _facts(flow: Flow | JumpFlow) -> dict[str, Any]:
    classes = classes_of(flow)
    context = "none" if flow.context_shape is None else f"shape {flow.context_shape}"
    return {
        "flow": spelled(None if flow.recipe is None else flow.recipe.describe()),
        "event shape": flow.event_shape,
        "base": f"{type(flow.base).__name__} of shape {flow.base.event_shape}",
        "context": f"labels 0 .. {classes - 1}" if classes else context,
        "parameters": f"{sum(p.numel() for p in flow.parameters()):,}",
        "likelihood": flow.likelihood,
        **_steps(flow),
    }


def _steps(flow: Flow | JumpFlow) -> dict[str, Any]:
    """Return how samples come about."""
    if isinstance(flow, JumpFlow):
        return {"vocabulary": flow.base.vocabulary, "sampler": flow.sampler}
    parts = (getattr(part, "solver", None) for part in flow.transport.modules())
    solvers = {str(part) for part in parts if isinstance(part, Solver)}
    return {"solver": ", ".join(sorted(solvers)) or "none: zero solver steps"}


def _figures(path: Path) -> dict[str, Any]:
    """Return what the folder of a run says of its training."""
    if not path.is_dir() or not (path / HISTORY).is_file():
        return {}
    settings, history = read_json(path / SETTINGS), read_json(path / HISTORY)
    last = {key: value for entry in history for key, value in entry.items()}
    best = min((entry["validation"], entry["step"]) for entry in history if "validation" in entry)
    return {
        "data": settings["data"],
        "loss": settings["loss"],
        "steps": last["step"],
        "last loss": f"{last['loss']:.4f}",
        "last validation": f"{last['validation']:.4f}",
        "best validation": f"{best[0]:.4f} at step {best[1]}",
    }


def _table(facts: Mapping[str, Any]) -> str:
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items())
