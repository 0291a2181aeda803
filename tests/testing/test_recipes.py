"""Every recipe passes the conformance kit, away from its initialisation, in both precisions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cflow import Flow, recipes
from cflow.field import Exact
from cflow.ode import RK4
from cflow.testing import Demands, check_flow
from cflow.testing.bench import perturb
from cflow.transport import RussianRoulette

DEEP: dict[str, Any] = dict(transforms=2, hidden_features=(6,))
SINGLE: dict[str, Any] = dict(transforms=1, hidden_features=(4,))
TARFLOW: dict[str, Any] = dict(patch=2, width=8, blocks=2, layers=1, heads=2)
UNET: dict[str, Any] = dict(
    width=4, multipliers=(1,), blocks=1, attention=(), heads=2, time_scale=1.0
)
DIT: dict[str, Any] = dict(patch=1, width=8, layers=1, heads=2, time_scale=1.0)
FEW = RK4(4)
PLAIN = Demands(spread=0.1)
SLOW = ("bernstein", "dit", "ffjord", "flowpp", "gaussianization", "naf", "umnn", "unet")
SOLVED = Demands(round_trip=1e-4, jacobian=1e-4, far=None, spread=0.1)
LOOPED = Demands(round_trip=1e-4, jacobian=1e-4, func=False, far=100.0)
GREY = Demands(far=None, spread=0.1)


def case(
    build: Callable[[], Flow], demands: Demands = PLAIN, **options: Any
) -> tuple[Callable[[], Flow], Demands, dict[str, Any]]:
    return build, demands, options


CASES = {
    "nice": case(lambda: recipes.nice(2, **DEEP)),
    "realnvp": case(lambda: recipes.realnvp(2, 2, **DEEP)),
    "maf": case(lambda: recipes.maf(3, 2, normalize=True, **DEEP)),
    "iaf": case(lambda: recipes.iaf(2, **DEEP)),
    "nsf": case(lambda: recipes.nsf(2, 2, bins=3, mixing="lu", **DEEP)),
    "nsf, coupling": case(lambda: recipes.nsf(2, 2, kind="coupling", bins=3, **DEEP)),
    "naf": case(lambda: recipes.naf(2, units=2, **SINGLE)),
    "umnn": case(lambda: recipes.umnn(1, 2, **SINGLE)),
    "bernstein": case(lambda: recipes.bernstein(2, degree=4, **SINGLE)),
    "flowpp": case(lambda: recipes.flowpp(2, units=2, **DEEP)),
    "gaussianization": case(
        lambda: recipes.gaussianization(2, transforms=1, units=2, hidden_features=(4,))
    ),
    "cnf": case(lambda: recipes.cnf(2, hidden_features=(8,), solver=FEW), SOLVED),
    "exact_cnf": case(lambda: recipes.exact_cnf(2, hidden_features=(8, 8), solver=FEW), SOLVED),
    "ffjord": case(lambda: recipes.ffjord(2, hidden_features=(8,), solver=FEW), SOLVED),
    "ffjord, exact": case(
        lambda: recipes.ffjord(2, hidden_features=(8,), solver=FEW).with_solver(divergence=Exact()),
        SOLVED,
    ),
    "unet": case(
        lambda: recipes.unet((1, 1, 2), 3, solver=RK4(2), divergence=Exact(), **UNET),
        SOLVED,
        classes=3,
    ),
    "dit": case(
        lambda: recipes.dit((1, 2), levels=2, solver=RK4(2), divergence=Exact(), **DIT),
        SOLVED,
        levels=2,
        edge=1.0,
    ),
    "residual": case(lambda: recipes.residual(2, transforms=2, hidden_features=(6,)), LOOPED),
    "residual, estimate": case(
        lambda: recipes.residual(2, transforms=2, hidden_features=(6,), logdet=RussianRoulette()),
        LOOPED,
    ),
    "invertible_densenet": case(
        lambda: recipes.invertible_densenet(2, transforms=2, growth=4), LOOPED
    ),
    "tarflow": case(lambda: recipes.tarflow((2, 4), 3, **TARFLOW), classes=3),
    "tarflow, levels": case(
        lambda: recipes.tarflow((2, 4), levels=2, **TARFLOW), GREY, levels=2, edge=1.0
    ),
    "glow": case(
        lambda: recipes.glow((2, 2), 3, scales=1, steps=2, hidden_channels=4, levels=5),
        GREY,
        classes=3,
        levels=5,
        edge=0.3,
    ),
    "standardized": case(
        lambda: recipes.standardized(recipes.nsf(2, bins=3, kind="coupling", **DEEP))
    ),
    "images": case(
        lambda: recipes.images(recipes.realnvp(4, **DEEP), (2, 2), levels=5), GREY, levels=5
    ),
}


def test_no_recipe_is_missing() -> None:
    """The kit knows flat space; files of tests/recipes/ hold those on manifolds, and of tokens."""
    named = {name.split(",")[0] for name in CASES}
    curved = {"sphere_cnf", "torus_cnf", "rotation_cnf"}
    curved |= {"sphere_flow", "torus_nsf", "torus_moebius"}
    tokens = {"token_mlp", "token_transformer"}
    assert named == set(recipes.__all__) - {"load", "recipe"} - curved - tokens


@pytest.mark.parametrize("name", CASES)
def test_every_recipe_passes_the_kit_in_float32(name: str) -> None:
    """The kit checks the map on copies in float64 and float32, and the law in the flow's dtype."""
    checked(name, torch.float32)


@pytest.mark.parametrize("name", [name for name in CASES if name.split(",")[0] not in SLOW])
def test_recipes_pass_the_kit_in_float64(name: str) -> None:
    checked(name, torch.float64)


def checked(name: str, dtype: torch.dtype) -> None:
    build, demands, options = CASES[name]
    flow = build().to(dtype)
    perturb(flow, demands.spread, 1)
    report = check_flow(flow, demands=demands, box=7.0, cells=60, draws=1000, **options)
    report.raise_if_failed()
