"""Pairs on disk: a kill costs one chunk, other work is refused, nothing is read as a whole."""

import errno
import json
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cflow import Flow, recipes
from cflow.base import Gaussian
from cflow.errors import CheckpointError, DomainError
from cflow.field import FunctionField
from cflow.matching import StoredPairs, reflow_pairs
from cflow.ode import Euler, Heun
from cflow.train import BatchSource, Trainer
from cflow.train.batches import in_order
from cflow.transport import ODE


class Killed(Exception):
    """What stands for a kill."""


def flow_of(velocity: Callable[[Tensor], Tensor] = lambda x: x.flip(-1).tanh()) -> Flow:
    field = FunctionField(lambda t, x, c: velocity(x))
    return Flow(Gaussian(3), ODE(field, Euler(4)))


def failing(after: int) -> Flow:
    """The same flow, but it is killed in its solve after so many evaluations."""
    count = 0

    def velocity(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        if count > after:
            raise Killed
        return x.flip(-1).tanh()

    return flow_of(velocity)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def done(folder: Path) -> int:
    return json.loads((folder / "pairs.json").read_text())["done"]


def test_stored_pairs_are_those_in_memory(tmp_path: Path) -> None:
    stored = reflow_pairs(flow_of(), 50, folder=tmp_path, chunk=7)
    assert all(map(torch.equal, stored.tensors(slice(None)), reflow_pairs(flow_of(), 50, chunk=7)))
    assert len(stored) == 50
    assert np.array_equal(np.load(tmp_path / "x1.npy"), stored.tensors(slice(None))[1].numpy())
    assert all(map(torch.equal, StoredPairs(tmp_path).tensors(slice(3, 9)),
                   stored.tensors(torch.arange(3, 9))))  # fmt: skip


def test_a_killed_run_goes_on_and_gives_every_bit_of_a_whole_one(tmp_path: Path) -> None:
    """Eight chunks of four evaluations each, killed thrice, once within the first chunk."""
    reflow_pairs(flow_of(), 50, folder=tmp_path / "whole", chunk=7)
    folder = tmp_path / "killed"
    for evaluations, chunks in ((2, 0), (13, 3), (9, 5)):
        with pytest.raises(Killed):
            reflow_pairs(failing(evaluations), 50, folder=folder, chunk=7)
        assert (done(folder) if (folder / "pairs.json").exists() else 0) == chunks
        with pytest.raises(CheckpointError, match="StoredPairs"):
            StoredPairs(folder)
    torn = np.load(folder / "x1.npy", mmap_mode="r+")
    torn[35:40] = np.nan  # rows of a chunk that was being written
    torn.flush()
    reflow_pairs(failing(12), 50, folder=folder, chunk=7)  # three chunks were left
    assert contents(folder) == contents(tmp_path / "whole")
    reflow_pairs(failing(0), 50, folder=folder, chunk=7)  # nothing is left
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_chunk_follows_from_seed_and_number_alone(tmp_path: Path) -> None:
    few = reflow_pairs(flow_of(), 14, folder=tmp_path / "few", chunk=7)
    many = reflow_pairs(flow_of(), 35, folder=tmp_path / "many", chunk=7)
    assert torch.equal(few.tensors(slice(None))[0], many.tensors(slice(0, 14))[0])


def test_other_work_in_the_folder_is_refused_by_what_differs(tmp_path: Path) -> None:
    teacher = recipes.cnf(2, hidden_features=(4,), solver=Heun(2))
    reflow_pairs(teacher, 10, folder=tmp_path, chunk=5)
    before = contents(tmp_path)
    again = dict(folder=tmp_path, chunk=5)
    with pytest.raises(CheckpointError, match=r"n was 10, now 11\); choose another folder"):
        reflow_pairs(teacher, 11, **again)
    with pytest.raises(CheckpointError, match=r"\(seed was 0, now 1\)"):
        reflow_pairs(teacher, 10, seed=1, **again)
    with pytest.raises(CheckpointError, match=r"\(chunk was 5, now 3\)"):
        reflow_pairs(teacher, 10, folder=tmp_path, chunk=3)
    with pytest.raises(CheckpointError, match=r"solver was Heun\(steps=2\), now Euler\(steps=2\)"):
        reflow_pairs(teacher.with_solver(Euler(2)), 10, **again)
    with pytest.raises(CheckpointError, match="another data"):
        reflow_pairs(teacher, 10, data=torch.randn(10, 2), **again)
    with torch.no_grad():
        next(teacher.parameters()).view(-1)[0] += 1e-12
    with pytest.raises(CheckpointError, match=r"\(another teacher\)"):
        reflow_pairs(teacher, 10, **again)
    assert contents(tmp_path) == before


def damaged(folder: Path, damage: Callable[[Path], object]) -> Path:
    reflow_pairs(flow_of(), 10, folder=folder)
    damage(folder)
    return folder


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda f: (f / "x1.npy").unlink(), "x1.npy, it is missing or damaged"),
    "truncated": (lambda f: os.truncate(f / "x1.npy", 200), "x1.npy, it is missing or damaged"),
    "no array": (lambda f: (f / "x0.npy").write_bytes(b"text"), "x0.npy, it is missing or damaged"),
    "another": (lambda f: np.save(f / "x0.npy", np.zeros((3, 2))), "should hold <f8 of shape"),
    "no note": (lambda f: (f / "pairs.json").write_text("{"), "cannot read .*pairs.json"),
    "foreign": (lambda f: (f / "pairs.json").write_text("[1]"), "was not written by cflow"),
    "half": (lambda f: (f / "pairs.json").write_text('{"asked": {}}'), "is no note of pairs"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused_by_name(damage: str, tmp_path: Path) -> None:
    change, message = DAMAGES[damage]
    folder = damaged(tmp_path / "pairs", change)
    before = contents(folder)
    with pytest.raises(CheckpointError, match=message):
        StoredPairs(folder)
    with pytest.raises(CheckpointError, match=message):
        reflow_pairs(flow_of(), 10, folder=folder)
    assert contents(folder) == before


def test_files_of_others_are_not_overwritten(tmp_path: Path) -> None:
    np.save(tmp_path / "x1.npy", np.arange(3))
    with pytest.raises(CheckpointError, match=r"holds x1.npy without pairs.json, which is not"):
        reflow_pairs(flow_of(), 10, folder=tmp_path)
    assert np.load(tmp_path / "x1.npy").tolist() == [0, 1, 2]
    with pytest.raises(CheckpointError, match=r"there is no pairs.json in .*; make pairs with"):
        StoredPairs(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot write"):
        reflow_pairs(flow_of(), 10, folder=tmp_path / "file")


def test_a_full_disk_is_told_before_the_work(tmp_path: Path, monkeypatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full, raising=False)
        with pytest.raises(CheckpointError, match="No space left on device; choose a folder with"):
            reflow_pairs(failing(4), 50, folder=tmp_path, chunk=7)  # after the first chunk
    assert done(tmp_path) == 0
    assert len(reflow_pairs(flow_of(), 50, folder=tmp_path, chunk=7)) == 50


def test_low_precision_is_stored_as_it_is_or_refused(tmp_path: Path) -> None:
    flow = flow_of().to(torch.float32)
    torch.set_default_dtype(torch.float32)
    data = torch.randn(6, 3)
    half = reflow_pairs(flow, 6, data=data.half(), folder=tmp_path / "half")
    assert half.tensors(slice(2))[1].dtype == torch.float16
    with pytest.raises(DomainError, match="NumPy files have no bfloat16"):
        reflow_pairs(flow, 6, data=data.bfloat16(), folder=tmp_path / "brain")


def numbered(tmp_path: Path, n: int = 30) -> StoredPairs:
    """Pairs with their numbers as labels."""
    field = FunctionField(lambda t, x, c: torch.zeros_like(x))
    flow = Flow(Gaussian(2), ODE(field, Euler(1)), context_shape=())
    return reflow_pairs(flow, n, folder=tmp_path / "pairs", context=torch.arange(n), chunk=8)


def test_every_pair_is_used_once_an_epoch(tmp_path: Path) -> None:
    pairs = numbered(tmp_path)
    assert isinstance(pairs, BatchSource)
    found = list(islice(pairs.batches(7, seed=0), 30))  # seven epochs, which 7 does not divide
    x0, x1, labels = (torch.cat(part) for part in zip(*found, strict=True))
    assert labels.dtype == torch.int64
    epochs = labels.reshape(7, 30)
    assert all(epoch.sort()[0].tolist() == list(range(30)) for epoch in epochs)
    assert not any(map(torch.equal, epochs, epochs[1:]))
    whole = pairs.tensors(slice(None))
    assert torch.equal(x0, whole[0][labels])  # rows keep together
    assert torch.equal(x1, whole[1][labels])


def test_a_batch_follows_from_seed_and_number_alone(tmp_path: Path) -> None:
    pairs = numbered(tmp_path)
    labels = lambda seed, start: [
        b[2].tolist() for b in islice(pairs.batches(7, seed=seed, start=start), 20 - start)
    ]
    assert labels(0, 0)[11:] == labels(0, 11)
    assert labels(0, 0) != labels(1, 0)
    with pytest.raises(DomainError, match="start must be 0 or more"):
        next(pairs.batches(7, seed=0, start=-1))


def test_files_are_mapped_and_never_written_to(tmp_path: Path) -> None:
    pairs = numbered(tmp_path)
    assert all(isinstance(array, np.memmap) for array in pairs.arrays.values())
    before = contents(tmp_path / "pairs")
    for tensor in (*next(pairs.batches(5, seed=0)), *pairs.tensors(slice(4))):
        tensor.zero_()  # copies, which belong to who asked
    assert contents(tmp_path / "pairs") == before


def test_stored_pairs_train_and_validate(tmp_path: Path) -> None:
    pairs = numbered(tmp_path)
    assert [len(x0) for x0, _, _ in in_order(pairs, 10)] == [10, 10, 10]
    seen: list[int] = []

    class Shift(torch.nn.Linear):
        """A model with something to train."""

    def loss(model: torch.nn.Module, x0: Tensor, x1: Tensor, label: Tensor, *, generator) -> Tensor:
        if model.training:
            seen.extend(label.tolist())
        return model(x0).square().mean(1)

    trainer = Trainer(Shift(2, 2), loss, steps=3, batch=10, validate_every=1, progress=False)
    result = trainer.fit(pairs, pairs)
    assert sorted(seen) == list(range(30))
    assert [figures["validation"] for figures in result.history if "validation" in figures]
