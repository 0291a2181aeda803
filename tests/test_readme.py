"""The README's example runs as it stands, with fewer steps; names that pages give exist."""

import re
from pathlib import Path

import pytest
import torch

import cflow
from cflow import (
    base,
    field,
    manifold,
    matching,
    metrics,
    recipes,
    samples,
    train,
    transport,
    variational,
)  # fmt: skip

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.unchecked
def test_the_twenty_lines_run(capsys) -> None:
    torch.set_default_dtype(torch.float32)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    exec(re.sub(r"steps=\d+", "steps=3", code), {})
    out = capsys.readouterr().out
    assert out.count("exact torch.Size([5, 2])") == 2


@pytest.mark.unchecked
def test_the_example_on_manifolds_runs(capsys) -> None:
    torch.set_default_dtype(torch.float32)
    text = (README.parent / "docs" / "manifolds.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(re.sub(r"steps=\d+", "steps=3", code), {})
    assert "tensor" in capsys.readouterr().out


def test_the_map_names_every_room() -> None:
    text = README.read_text()
    rooms = {p.name for p in (README.parent / "cflow").iterdir() if p.suffix == ".py" or p.is_dir()}
    for name in rooms - {"__init__.py", "__pycache__"}:
        assert re.search(rf"\b{re.escape(name)}", text), name


def test_the_names_for_those_of_other_libraries_exist() -> None:
    page = (README.parent / "docs" / "choosing.md").read_text().split("## Names", 1)[1]
    ours = [row.split("|")[2] for row in page.splitlines() if row.count("|") == 3]
    assert unknown(ours, at_least=60) == []


def test_the_names_of_matching_exist() -> None:
    page = (README.parent / "docs" / "matching.md").read_text()
    choices, peers = page.split("## Names", 1)
    ours = [row.split("|")[2] for row in (choices + peers).splitlines() if row.count("|") > 2]
    assert unknown(ours, at_least=60) == []


def unknown(cells: list[str], *, at_least: int) -> list[str]:
    """Return the names in backticks that no room of cflow has."""
    rooms = (torch.distributions, cflow, cflow.Flow, base, field, manifold, matching, metrics,
             recipes, samples, train, transport, variational)  # fmt: skip
    names = re.findall(r"`(?:\w+\.)*(\w+)(?:\([^`]*\))?`", " ".join(cells))
    assert len(names) > at_least
    return [name for name in names if not any(hasattr(room, name) for room in rooms)]
