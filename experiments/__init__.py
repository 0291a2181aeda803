"""Experiments: scripts that read like a page; they import cflow and never each other."""
