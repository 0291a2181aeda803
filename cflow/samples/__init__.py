"""Samples: guidance while they are drawn, denoising afterwards."""

from cflow.samples.denoise import denoise, guided

__all__ = ["denoise", "guided"]
