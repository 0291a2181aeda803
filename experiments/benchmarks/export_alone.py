"""Open a sampler in a process of its own, call it, and say what that took: memory and time.

python export_alone.py eager|compiled|pt2|package|onnxruntime FILE NOISE.npy

Prints JSON: bytes by which the resident set grew after the imports, seconds until the first batch
was there. One thread. The first two read a saved flow and import cflow; the others do without.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

CALLS = 10
STEPS = 4


def opener(kind: str, path: str, x: np.ndarray) -> Callable[[], Callable[[], Any]]:
    """Import what a kind needs, and return what opens the file and gives a call."""
    if kind == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1

        def by_onnxruntime() -> Callable[[], Any]:
            session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
            return lambda: session.run(None, {"noise": x})

        return by_onnxruntime
    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    noise = torch.from_numpy(x)
    if kind in ("eager", "compiled"):
        from cflow import load
        from cflow.export import Sampler

        def by_torch() -> Callable[[], Any]:
            sampler = Sampler(load(path), steps=STEPS)
            run = torch.compile(sampler, fullgraph=True) if kind == "compiled" else sampler
            return lambda: run(noise)

        return by_torch
    import torch._inductor
    import torch.export

    def by_file() -> Callable[[], Any]:
        package = kind == "package"
        load_package = torch._inductor.aoti_load_package
        run = load_package(path) if package else torch.export.load(path).module()
        return lambda: run(noise=noise)

    return by_file


def resident() -> int:
    """Return the largest resident set so far, in bytes.

    Where there is a /proc: the kernel's other count begins with the parent's.
    """
    try:
        with open("/proc/self/status") as status:
            (line,) = (line for line in status if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(kind: str, path: str, noise: str) -> None:
    open_file = opener(kind, path, np.load(noise))
    before, start = resident(), time.perf_counter()
    call = open_file()
    call()
    seconds = time.perf_counter() - start
    for _ in range(CALLS):
        call()
    print(json.dumps({"bytes": resident() - before, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
