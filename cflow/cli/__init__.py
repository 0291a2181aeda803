"""The command line: train, sample, log-prob, export and info; `main` is the entry point."""

from cflow.cli.entry import main

__all__ = ["main"]
