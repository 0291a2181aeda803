"""Importing cflow is quick and loads nothing that only some callers need."""

import json
import subprocess
import sys

import pytest

CODE = """
import json, multiprocessing, random, sys, tempfile, time
import numpy, torch
kept = tempfile.TemporaryDirectory()
sys.dont_write_bytecode, sys.pycache_prefix = False, kept.name

def state():
    return (
        torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(),
        torch.get_rng_state().tolist(), random.getstate(), str(numpy.random.get_state()),
        torch.distributions.Distribution._validate_args,
        sorted(vars(torch.distributions.Transform)), sorted(vars(torch.Tensor)),
    )

def seconds_and_heavy():
    start = time.process_time()
    import cflow
    seconds = time.process_time() - start
    heavy = "wandb ot matplotlib torchdyn torchdiffeq onnx sklearn tyro scipy".split()
    return seconds, [name for name in heavy if name in sys.modules]

def unchanged():
    before = state()
    import cflow
    return state() == before

with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
    runs = [pool.apply(seconds_and_heavy) for _ in range(4)]
    found = {"runs": runs, "unchanged": pool.apply(unchanged), "here": "cflow" in sys.modules}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict:
    """Import cflow several times, each in a fork of one process that has torch and not yet cflow.

    The first import leaves its bytecode to the others, as an installed package does.
    """
    out = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    return json.loads(out.stdout)


def test_importing_changes_nothing_global(found: dict) -> None:
    assert found["unchanged"]


def test_import_is_quick_beyond_torch_and_loads_nothing_heavy(found: dict) -> None:
    assert not found["here"]
    assert all(heavy == [] for _, heavy in found["runs"])
    assert min(seconds for seconds, _ in found["runs"]) < 0.3
