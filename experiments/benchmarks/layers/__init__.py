"""Layers beside zuko, nflows and normflows: training steps and samples."""
