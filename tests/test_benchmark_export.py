"""The benchmark of exported files runs from start to end in its smoke mode."""

import functools
import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

import pytest
import torch

from cflow import Flow
from experiments.benchmarks import export
from experiments.benchmarks.export import FIGURES, Settings, agree, main

pytestmark = pytest.mark.unchecked


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def once(monkeypatch) -> Iterator[None]:
    """Write files for the first figure alone, and weigh each in one process: both take seconds."""
    write, kept = export.written, []
    with ExitStack() as stack:

        def written(flow: Flow) -> AbstractContextManager:
            if not kept:
                kept.append(stack.enter_context(write(flow)))
            return nullcontext(kept[0])

        monkeypatch.setattr(export, "written", written)
        monkeypatch.setattr(export, "alone", functools.cache(export.alone))
        yield


@pytest.mark.usefixtures("once")
def test_every_form_is_timed_and_weighed(tmp_path: Path) -> None:
    report = main(Settings(out=tmp_path, smoke=True, threads=1))
    assert set(report["figures"]) == set(FIGURES)
    forms = {"compiled", "pt2", "onnxruntime", *(["package"] if shutil.which("g++") else [])}
    timed = [row["what"] for row in report["figures"]["latency"]]
    for batch in (1, 3):
        head = f"3x256, batch {batch}, "
        assert {what[len(head) :].split(":")[0] for what in timed if what.startswith(head)} == forms
    wanted = [row for row in report["figures"]["latency"] if row["wanted"] is not None]
    assert [row["what"].split(":")[0] for row in wanted] == ["3x256, batch 1, onnxruntime"]
    weighed = {row["what"]: row for row in report["figures"]["memory"]}
    grown = weighed["3x256, batch 1, memory of a process"]
    assert all(0 < value < 1000 for value in (grown["ours"], *grown["peers"].values()))
    assert weighed["3x256, size of the file"]["ours"] < 1  # a few thousand weights
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["figures"].keys() == report["figures"].keys()


def test_forms_that_disagree_are_seen() -> None:
    x = torch.ones(3)
    agree({"eager": lambda: x, "onnxruntime": lambda: [x.numpy()]})
    with pytest.raises(RuntimeError, match=r"pt2 is 0\.5 from eager"):
        agree({"eager": lambda: x, "pt2": lambda: 1.5 * x})
