"""From words to a command, and from an error to one line.

status 0: done;  2: bad input, one line on stderr;  130: interrupted;  a bug shows its traceback
"""

import inspect
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Union

import tyro
from tyro.conf import FlagCreatePairsOff, subcommand

import cflow
from cflow.cli.command import Command
from cflow.cli.export import Export
from cflow.cli.info import Info
from cflow.cli.log_prob import LogProb
from cflow.cli.sample import Sample
from cflow.cli.script import run_script, script_of
from cflow.cli.train import Train
from cflow.errors import CflowError

__all__ = ["COMMANDS", "main"]

LONGEST = 1000  # characters of an error


COMMANDS: dict[str, type[Command]] = {
    "train": Train,
    "sample": Sample,
    "log-prob": LogProb,
    "export": Export,
    "info": Info,
}

OVERVIEW = """Flows: train them on data, draw samples, evaluate densities, export samplers.

Start with: cflow train nsf data.npy --out runs/nsf; `cflow COMMAND --help` shows an example of each
command, and `cflow --version` the version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The words after `cflow`; those of the process by default.

    Returns:
        The exit status: 0, 2 for bad input, 130 for an interrupt.

    Raises:
        SystemExit: Help was asked for (status 0), the words make no command (status 2), or a script
            ended with a status of its own.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        _say(sys.stdout, f"cflow {cflow.__version__}")
        return 0
    try:
        script = script_of(words)
        if script is None:
            _say(sys.stdout, _parse(words or ["--help"]).run())
            return 0
    except CflowError as error:
        _say(sys.stderr, f"cflow: {_one_line(error)}")
        return 2
    except KeyboardInterrupt:
        _say(sys.stderr, "cflow: interrupted")
        return 130
    run_script(script, words[2:])  # its errors are its own, tracebacks and all
    return 0


def _parse(words: Sequence[str]) -> Command:
    whole = len(words) > 1  # the overview has a sentence for each command
    kinds = [
        Annotated[kind, subcommand(name, description=_description(kind, whole=whole))]
        for name, kind in COMMANDS.items()
    ]
    chosen: Any = Union[tuple(kinds)]  # noqa: UP007  built at run time
    return tyro.cli(
        chosen, prog="cflow", description=OVERVIEW, args=words, config=(FlagCreatePairsOff,)
    )


def _description(kind: type[Command], *, whole: bool) -> str:
    """Return what a command is for and an example; its settings are listed below them."""
    text = inspect.getdoc(kind) or ""
    text = text.split("\n\nAttributes:")[0] if whole else text.split("\n\n")[0]
    return f"{text}\n\nExample: {kind.EXAMPLE}"


def _one_line(error: CflowError) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."


def _say(stream: Any, text: str) -> None:  # noqa: ANN401
    stream.write(text + "\n")
    stream.flush()
