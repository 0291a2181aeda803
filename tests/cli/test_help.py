"""Help: every command has an example, and the example is one."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import cflow as library
from cflow.cli.entry import COMMANDS, _parse


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_shows_an_example_that_parses(cflow, name: str) -> None:
    example = COMMANDS[name].EXAMPLE
    done = cflow(name, "--help")
    done.expect_success(f"Example: {example}")
    first, second, *words = shlex.split(example)
    assert (first, second) == ("cflow", name)
    assert type(_parse([name, *words])) is COMMANDS[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_setting_is_described(name: str) -> None:
    documented = COMMANDS[name].__doc__ or ""
    for setting in fields(COMMANDS[name]):  # type: ignore[arg-type]
        described = rf"^\s+{setting.name}: \w"
        assert re.search(described, documented, flags=re.MULTILINE), setting.name


def test_nothing_is_a_question_for_help(cflow) -> None:
    bare, asked = cflow(), cflow("--help")
    assert bare == asked
    bare.expect_success(*COMMANDS, "cflow train nsf data.npy")
    assert "Attributes" not in bare.out


def test_the_version(cflow) -> None:
    assert cflow("--version").out == f"cflow {library.__version__}\n"


def test_help_costs_little_more_than_torch(tmp_path: Path) -> None:
    """The better of two, in processor time of a new process, beside that of `import torch`."""

    def seconds(*words: str | Path) -> float:
        before = os.times()
        subprocess.run(words, check=True, capture_output=True, cwd=tmp_path)
        after = os.times()
        return after.children_user - before.children_user

    command = Path(sys.executable).with_name("cflow")
    torch = min(seconds(sys.executable, "-c", "import torch") for _ in range(2))
    assert min(seconds(command, "--help") for _ in range(2)) < torch + 1.0
