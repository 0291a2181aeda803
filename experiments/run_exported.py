"""Run an exported file where cflow is unknown: torch or onnxruntime alone.

    python run_exported.py sampler.onnx noise.npy samples.npy
    python run_exported.py sampler.pt2 noise.npy samples.npy labels.npy
    python run_exported.py log_prob.pt2 x.npy log_prob.npy

The first input is the noise of a sampler, or the points of an encoder or a likelihood; the last
file, where there is one, holds the conditions. A `.pt2` file may be compiled ahead of time.
"""

import json
import sys
import zipfile

import numpy as np


def run_onnx(model: str, inputs: list[np.ndarray]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return np.asarray(session.run(None, dict(zip(names, inputs, strict=True)))[0])


def run_torch(model: str, inputs: list[np.ndarray]) -> np.ndarray:
    import torch

    about = description(model)
    if about["format"] == "aoti":
        from torch._inductor import aoti_load_package

        call = aoti_load_package(model)
    else:
        call = torch.export.load(model).module()
    tensors = [torch.from_numpy(each) for each in inputs]
    with torch.no_grad():
        return call(**dict(zip(about["inputs"], tensors, strict=True))).numpy()


def description(model: str) -> dict:
    """Return what a `.pt2` file says of itself."""
    with zipfile.ZipFile(model) as stream:
        (name,) = [name for name in stream.namelist() if name.endswith("cflow.json")]
        return json.loads(stream.read(name))


def main(model: str, first: str, out: str, *rest: str) -> None:
    inputs = [np.load(each) for each in (first, *rest)]
    x = (run_onnx if model.endswith(".onnx") else run_torch)(model, inputs)
    if "cflow" in sys.modules:
        raise SystemExit("cflow was imported: the file does not stand alone")
    np.save(out, x)


if __name__ == "__main__":
    main(*sys.argv[1:])
