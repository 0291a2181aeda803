"""Run an exported sampler where cflow is unknown: torch or onnxruntime alone.

python run_exported.py sampler.pt2|sampler.onnx noise.npy samples.npy
"""

import sys

import numpy as np


def main(model: str, noise: str, samples: str) -> None:
    x0 = np.load(noise)
    if model.endswith(".onnx"):
        import onnxruntime

        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        x = np.asarray(session.run(None, {"noise": x0})[0])
    else:
        import torch

        with torch.no_grad():
            x = torch.export.load(model).module()(noise=torch.from_numpy(x0)).numpy()
    if "cflow" in sys.modules:
        raise SystemExit("cflow was imported: the file does not stand alone")
    np.save(samples, x)


if __name__ == "__main__":
    main(*sys.argv[1:])
