"""Importing cflow is quick and loads nothing that only some callers need."""

import json
import subprocess
import sys

CODE = """
import json, sys, time
import torch
start = time.perf_counter()
import cflow
seconds = time.perf_counter() - start
heavy = ["wandb", "ot", "matplotlib", "torchdyn", "torchdiffeq", "onnx", "sklearn", "tyro", "scipy"]
print(json.dumps([seconds, [name for name in heavy if name in sys.modules]]))
"""


GLOBALS = """
import random, numpy, torch
def state():
    return (
        torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(),
        torch.get_rng_state().tolist(), random.getstate(), str(numpy.random.get_state()),
        torch.distributions.Distribution._validate_args,
        sorted(vars(torch.distributions.Transform)), sorted(vars(torch.Tensor)),
    )
before = state()
import cflow
assert state() == before
"""


def test_importing_changes_nothing_global() -> None:
    subprocess.run([sys.executable, "-c", GLOBALS], check=True)


def run() -> tuple[float, list[str]]:
    out = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    return tuple(json.loads(out.stdout))


def test_import_is_quick_beyond_torch_and_loads_nothing_heavy() -> None:
    runs = [run() for _ in range(3)]
    assert all(heavy == [] for _, heavy in runs)
    assert min(seconds for seconds, _ in runs) < 0.3
