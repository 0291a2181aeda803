"""The README's example runs as it stands, with fewer steps."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.unchecked
def test_the_twenty_lines_run(capsys) -> None:
    torch.set_default_dtype(torch.float32)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    exec(re.sub(r"steps=\d+", "steps=3", code), {})
    out = capsys.readouterr().out
    assert out.count("exact torch.Size([5, 2])") == 2


def test_the_map_names_every_room() -> None:
    text = README.read_text()
    rooms = {p.name for p in (README.parent / "cflow").iterdir() if p.suffix == ".py" or p.is_dir()}
    for name in rooms - {"__init__.py", "__pycache__"}:
        assert name in text, name
