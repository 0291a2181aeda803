"""Importing cflow is quick and loads nothing that only some callers need."""

import json
import os
import subprocess
import sys
from pathlib import Path

CODE = """
import json, sys, time
import torch
start = time.process_time()
import cflow
seconds = time.process_time() - start
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


def run(cache: Path) -> tuple[float, list[str]]:
    """Import in a new process that keeps its bytecode, as an installed package does."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    out = subprocess.run(
        [sys.executable, "-c", CODE],
        check=True,
        capture_output=True,
        text=True,
        env=kept | {"PYTHONPYCACHEPREFIX": str(cache)},
    )
    return tuple(json.loads(out.stdout))


def test_import_is_quick_beyond_torch_and_loads_nothing_heavy(tmp_path: Path) -> None:
    runs = [run(tmp_path) for _ in range(4)]  # the first compiles
    assert all(heavy == [] for _, heavy in runs)
    assert min(seconds for seconds, _ in runs) < 0.3
