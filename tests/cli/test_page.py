"""The page about the command line: its commands run, in order, and say what the page says."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

pytestmark = [pytest.mark.unchecked, pytest.mark.usefixtures("in_an_empty_folder")]  # it exports


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def commands() -> Iterator[tuple[str, str]]:
    """Give each command with the output that follows it."""
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = part.partition("\n")
            yield line, output


def masked(text: str) -> str:
    """Return the text without its figures, which a shorter training changes."""
    return re.sub(r"[+-]?\d[\d.,]*(e[+-]?\d+)?(\+(cpu|cu\d+))?", "#", text)


def test_the_page_runs_and_says_what_it_says(cflow) -> None:
    for code in blocks("python"):
        exec(code, {})
    seen = []
    for line, output in commands():
        first, *words = shlex.split(re.sub(r"--steps \d{3,}", "--steps 30", line))
        assert first == "cflow"
        done = cflow(*words)
        assert masked(done.out + done.err) == masked(output), line
        assert done.status == (2 if output.startswith("cflow: ") else 0), line
        seen.append(words[0])
    assert set(seen) == {"train", "info", "sample", "log-prob", "export"}
