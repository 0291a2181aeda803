"""Recipes: functions that build a flow from a few numbers, and `load`, which rebuilds it."""

from cflow.recipes.cnf import cnf
from cflow.recipes.exact_cnf import exact_cnf
from cflow.recipes.ffjord import ffjord
from cflow.recipes.glow import glow
from cflow.recipes.images import images
from cflow.recipes.invertible_densenet import invertible_densenet
from cflow.recipes.realnvp import realnvp
from cflow.recipes.recipe import load, recipe
from cflow.recipes.residual import residual
from cflow.recipes.tarflow import tarflow

__all__ = [
    "cnf",
    "exact_cnf",
    "ffjord",
    "glow",
    "images",
    "invertible_densenet",
    "load",
    "realnvp",
    "recipe",
    "residual",
    "tarflow",
]
