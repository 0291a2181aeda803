"""Help: every command has an example, and the example is one."""

import re
import shlex
import subprocess
import sys
from dataclasses import fields

import pytest

import cflow as library
from cflow.cli.entry import COMMANDS, _parse

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


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


CODE = """
import time
import torch
start = time.process_time()
from cflow.cli import main
try:
    main(["--help"])
except SystemExit:
    raise SystemExit(time.process_time() - start > 1.0)
"""


def test_help_costs_less_than_a_second_beyond_torch() -> None:
    """In processor time of a new process; the better of two, the first of which may compile."""
    assert any(subprocess.run([sys.executable, "-c", CODE]).returncode == 0 for _ in range(2))
