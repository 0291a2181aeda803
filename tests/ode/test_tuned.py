"""The tuned solver is any explicit method with one evaluation a step, and runs one way only."""

import json

import pytest
import torch
from torch import Tensor

from cflow.errors import DomainError
from cflow.ode import (
    AdamsBashforth2,
    AdamsBashforth3,
    EDMGrid,
    Euler,
    Midpoint,
    Solver,
    TimeGrid,
    Tuned,
)
from cflow.recipes.recipe import _decode, _encode
from cflow.samples.tuning import scheme_of


def field(t: Tensor, y: Tensor) -> Tensor:
    return torch.sin(3 * t)[:, None] * y.flip(-1) + t[:, None] ** 2


@pytest.mark.parametrize(
    "solver",
    [Euler(5), Euler(3, EDMGrid()), Midpoint(3), AdamsBashforth2(4), AdamsBashforth3(5)],
    ids=str,
)
def test_it_repeats_any_method_whose_times_rise(solver: Solver) -> None:
    scheme = scheme_of(solver)
    assert scheme is not None
    tuned = scheme.solver()
    y0 = torch.randn(6, 2)
    ours, theirs = (s.solve(field, y0, 0.0, 1.0) for s in (tuned, solver))
    assert torch.allclose(ours.y, theirs.y, rtol=0, atol=1e-13)
    assert torch.equal(ours.nfe, theirs.nfe)


def test_a_pair_of_leaves_and_arguments_go_through() -> None:
    tuned = Tuned(weights=((0.4,), (-0.2, 1.3)), grid=TimeGrid((0.0, 0.4, 1.0)))
    y0 = (torch.randn(3, 2), torch.zeros(3))
    f = lambda t, y, a: (a * y[0], y[0].sum(-1))
    a = torch.rand(3, 1)
    x, total = tuned.solve(f, y0, 0.0, 1.0, args=(a,)).y
    first = y0[0] + 0.4 * a * y0[0]
    assert torch.allclose(x, y0[0] - 0.2 * a * y0[0] + 1.3 * a * first)
    assert torch.allclose(total, -0.2 * y0[0].sum(-1) + 1.3 * first.sum(-1))


def test_it_runs_the_way_it_was_tuned_for_and_no_other() -> None:
    tuned = Tuned(weights=((0.4,), (0.1, 0.9)), grid=TimeGrid((0.0, 0.4, 1.0)))
    y0 = torch.ones(1, 2)
    for t0, t1, more in ((1.0, 0.0, {}), (0.0, 1.0, {"stop_at": [0.5]})):
        with pytest.raises(DomainError, match="Tuned: its steps were tuned"):
            tuned.solve(field, y0, t0, t1, **more)
    with pytest.raises(DomainError, match="TimeGrid"):
        tuned.solve(field, y0, 0.0, 0.5)


def test_gradients_pass_through_it() -> None:
    tuned = Tuned(weights=((0.4,), (-0.2, 1.3)), grid=TimeGrid((0.0, 0.4, 1.0)))
    y0 = torch.randn(2, 2, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: tuned.solve(field, y, 0.0, 1.0).y, y0)


def test_it_is_saved_as_data() -> None:
    tuned = Tuned(weights=((0.4,), (-0.2, 1.3)), grid=TimeGrid((0.0, 0.4, 1.0)))
    text = json.dumps(_encode("test", tuned))
    assert _decode("test", json.loads(text)) == tuned
    assert hash(tuned) == hash(_decode("test", json.loads(text)))


@pytest.mark.parametrize(
    ("weights", "times", "words"),
    [
        ((), (0.0, 1.0), "rows of 1, 2"),
        (((0.5,), (0.5,)), (0.0, 0.5, 1.0), "rows of 1, 2"),
        (((1.0,),), (0.0, 0.5, 1.0), "need grid=TimeGrid with 2 times"),
    ],
)
def test_what_does_not_fit_is_refused(weights: tuple, times: tuple, words: str) -> None:
    with pytest.raises(DomainError, match=words):
        Tuned(weights=weights, grid=TimeGrid(times))
