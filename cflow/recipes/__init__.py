"""Recipes: functions that build a flow from a few numbers, and `load`, which rebuilds it."""

from cflow.recipes.bernstein import bernstein
from cflow.recipes.cnf import cnf
from cflow.recipes.dit import dit
from cflow.recipes.exact_cnf import exact_cnf
from cflow.recipes.ffjord import ffjord
from cflow.recipes.flowpp import flowpp
from cflow.recipes.gaussianization import gaussianization
from cflow.recipes.glow import glow
from cflow.recipes.images import images
from cflow.recipes.invertible_densenet import invertible_densenet
from cflow.recipes.maf import iaf, maf
from cflow.recipes.manifold_cnf import rotation_cnf, sphere_cnf, torus_cnf
from cflow.recipes.naf import naf
from cflow.recipes.nice import nice
from cflow.recipes.nsf import nsf
from cflow.recipes.realnvp import realnvp
from cflow.recipes.recipe import load, recipe
from cflow.recipes.residual import residual
from cflow.recipes.sphere import sphere_flow
from cflow.recipes.standardized import standardized
from cflow.recipes.tarflow import tarflow
from cflow.recipes.tokens import token_mlp, token_transformer
from cflow.recipes.torus import torus_moebius, torus_nsf
from cflow.recipes.umnn import umnn
from cflow.recipes.unet import unet

__all__ = [
    "bernstein",
    "cnf",
    "dit",
    "exact_cnf",
    "ffjord",
    "flowpp",
    "gaussianization",
    "glow",
    "iaf",
    "images",
    "invertible_densenet",
    "load",
    "maf",
    "naf",
    "nice",
    "nsf",
    "realnvp",
    "recipe",
    "residual",
    "rotation_cnf",
    "sphere_cnf",
    "sphere_flow",
    "standardized",
    "tarflow",
    "token_mlp",
    "token_transformer",
    "torus_cnf",
    "torus_moebius",
    "torus_nsf",
    "umnn",
    "unet",
]
