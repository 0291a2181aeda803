"""What a file says of itself, as JSON: what goes in and comes out, and what it was checked with."""

import json
from importlib.metadata import version
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from cflow.export.exportable import Exportable
from cflow.export.parity import CHECKED, SEED

__all__ = ["FORMAT", "KEY", "NAME", "Format", "described"]

Format: TypeAlias = Literal["pt2", "onnx", "aoti"]
FORMAT = 1
"""Version of the description itself."""

NAME, KEY = "cflow.json", "cflow"
"""The entry that holds it in a `.pt2` file, and the property that does so in an ONNX file."""


def described(
    module: Exportable,
    form: Format,
    inputs: dict[str, Tensor],
    tolerance: float,
    *,
    parity: float | None = None,
) -> str:
    """Return the description of a module that is being written.

    Args:
        module: What is written.
        form: The format.
        inputs: What it is traced with, by name.
        tolerance: Largest parity that is accepted.
        parity: What was found, where it is known.
    """
    context, facts = inputs.get("context"), module.facts()
    shapes = {name: facts.pop(name) for name in ("data_shape", "base", "base_shape")}
    fields: dict[str, Any] = {
        "cflow": FORMAT,
        "kind": module.kind,
        "format": form,
        "inputs": list(inputs),
        "output": module.output_name,
        "event_shape": module.in_shape,
        **shapes,
        "context_shape": module.context_shape,
        "context_dtype": None if context is None else _name(context),
        "dtype": _name(inputs[module.input_name]),
        **facts,
        "parity": {"found": parity, "tolerance": tolerance, "seed": SEED, "batches": CHECKED},
        "versions": {"cflow": version("cflow"), "torch": torch.__version__},
    }
    return json.dumps(fields)


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
