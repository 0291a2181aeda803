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


def run() -> tuple[float, list[str]]:
    out = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    return tuple(json.loads(out.stdout))


def test_import_is_quick_beyond_torch_and_loads_nothing_heavy() -> None:
    runs = [run() for _ in range(3)]
    assert all(heavy == [] for _, heavy in runs)
    assert min(seconds for seconds, _ in runs) < 0.3
