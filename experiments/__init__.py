"""Experiments: scripts that read like a page, write their figures to runs/, and import only cflow."""
