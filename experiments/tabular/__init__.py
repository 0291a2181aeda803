"""Density of five UCI tables with any recipe."""
