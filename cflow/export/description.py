"""What a file says of itself, as JSON: what goes in and comes out, and what it was checked with."""

import json
from importlib.metadata import version
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from cflow.export.exportable import Exportable, sampled, stepped
from cflow.export.noise import noise_law
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
    flow = module.flow
    hands: list[Any] = [part.solver for part in stepped(flow.transport)]
    hands += [part.sampler for part in sampled(flow.transport)]
    context = inputs.get("context")
    fields: dict[str, Any] = {
        "cflow": FORMAT,
        "kind": module.kind,
        "format": form,
        "inputs": list(inputs),
        "output": module.output_name,
        "event_shape": module.in_shape,
        "data_shape": flow.event_shape,
        "base": noise_law(flow.base),
        "base_shape": flow.base.event_shape,
        "context_shape": module.context_shape,
        "context_dtype": None if context is None else _name(context),
        "dtype": _name(inputs[module.input_name]),
        "steps": [each.steps for each in hands],
        "solvers": [str(each) for each in hands],
        "guidance": module.guidance,
        "likelihood": flow.likelihood if module.kind == "log_prob" else None,
        "parity": {"found": parity, "tolerance": tolerance, "seed": SEED, "batches": CHECKED},
        "versions": {"cflow": version("cflow"), "torch": torch.__version__},
    }
    return json.dumps(fields)


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
