"""Recipes: functions that build a flow from a few numbers, and `load`, which rebuilds it."""

from cflow.recipes.cnf import cnf
from cflow.recipes.images import images
from cflow.recipes.realnvp import realnvp
from cflow.recipes.recipe import load, recipe

__all__ = ["cnf", "images", "load", "realnvp", "recipe"]
