"""Snapshots: times mapped, velocities scaled by the interval, one time left out and found again."""

import math

import pytest
import torch
from torch import Tensor

from cflow import State
from cflow.errors import DomainError, ShapeError
from cflow.field import FunctionField, LinearSchedule, MLPField
from cflow.matching import (
    AffinePath,
    BridgePath,
    ContextDropout,
    Coupling,
    IndependentCoupling,
    LinearPath,
    OTCoupling,
    PairedCoupling,
    UniformTimes,
    snapshot_matching,
    unit_times,
)
from cflow.ode import RK4
from cflow.train import CosineDecay, Trainer
from cflow.transport import ODE

YEARS = [1990.0, 1991.0, 1994.0, 2000.0]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moving(sizes: tuple[int, ...] = (60, 80, 50, 70)) -> list[Tensor]:
    """Clouds that move 10 t to the right, t being mapped time, each point keeping its height."""
    height = torch.randn(100)
    return [
        torch.stack([10 * t + torch.zeros(n), height[:n]], 1)
        for n, t in zip(sizes, unit_times(YEARS), strict=True)
    ]


def test_times_are_mapped_to_the_unit_interval() -> None:
    assert unit_times(YEARS) == pytest.approx([0, 0.1, 0.4, 1.0])
    assert unit_times(torch.tensor(YEARS)) == pytest.approx([0, 0.1, 0.4, 1.0])


@pytest.mark.parametrize("leave_out", [None, 1, 2])
def test_the_exact_field_has_no_error_whatever_the_intervals(leave_out: int | None) -> None:
    """Rows kept together move by (10, 0) per unit of mapped time, over short and long intervals."""
    seen = []

    def field(t: Tensor, x: Tensor, c: Tensor | None) -> Tensor:
        seen.append((t, x))
        return torch.tensor([10.0, 0.0]).expand(x.shape)

    loss = snapshot_matching(
        field,
        LinearPath(),
        PairedCoupling(),
        moving((50,) * 4),
        times=YEARS,
        leave_out=leave_out,
        batch=32,
    )
    assert loss.shape == ((3 if leave_out is None else 2) * 32,)
    assert loss.max() < 1e-20
    ((t, x),) = seen  # one evaluation for all intervals
    assert torch.allclose(x[:, 0], 10 * t)
    assert 0 <= t.min() < 0.1
    assert 0.9 < t.max() <= 1


def test_what_is_left_out_is_not_looked_at() -> None:
    clouds = moving()
    clouds[2] = torch.full((5, 2), torch.nan)
    run = lambda seed, out: snapshot_matching(
        lambda t, x, c: x,
        LinearPath(),
        OTCoupling(),
        clouds,
        times=YEARS,
        leave_out=out,
        batch=20,
        generator=seeded(seed),
    )
    assert run(0, 2).isfinite().all()
    assert torch.equal(run(0, 2), run(0, 2))
    assert not torch.equal(run(0, 2), run(1, 2))
    with pytest.raises(DomainError, match="must be finite"):
        run(0, None)


@pytest.mark.parametrize("batch", [20, 500])
def test_points_are_drawn_once_where_there_are_enough(batch: int) -> None:
    clouds = [torch.arange(60.0)[:, None], torch.arange(80.0)[:, None]]
    seen = {}

    def field(t: Tensor, x: Tensor, c: Tensor | None) -> Tensor:
        seen["x"] = x
        return x

    at_end = UniformTimes(1 - 1e-12, 1.0)
    snapshot_matching(
        field,
        LinearPath(),
        IndependentCoupling(),
        clouds,
        times=[0.0, 1.0],
        batch=batch,
        law=at_end,
    )
    values = seen["x"].round().unique()
    assert seen["x"].shape == (batch, 1)
    if batch == 20:
        assert len(values) == 20
    else:  # 80 values are all missed by 500 draws with probability 80 exp(-6.25) = 0.15 at most
        assert len(values) > 70


def test_contexts_follow_their_targets_and_both_sides_reach_the_coupling() -> None:
    clouds = moving()
    contexts = [cloud[:, 1:] for cloud in clouds]  # the height: the same before and after
    asked = {}

    class Spy(Coupling):
        def __call__(self, x0, x1, context=None, *, source_context=None, **options):
            asked["both"] = torch.equal(x0[:, 1:], source_context), torch.equal(x1[:, 1:], context)
            return PairedCoupling()(x0, x1, context, source_context=source_context)

    def field(t: Tensor, x: Tensor, c: Tensor | None) -> Tensor:
        assert c is not None
        asked["heights"] = c
        return torch.zeros_like(x)

    options = {"times": YEARS, "contexts": contexts, "batch": 16}
    snapshot_matching(field, LinearPath(), Spy(), clouds, **options)
    assert asked["both"] == (True, True)
    assert asked["heights"].shape == (48, 1)
    snapshot_matching(
        field, LinearPath(), OTCoupling(), clouds, dropout=ContextDropout(1.0, null=7.0), **options
    )
    assert (asked["heights"] == 7).all()


def test_weights_are_functions_of_mapped_time() -> None:
    times, clouds = [], moving()
    plain, weighted = (
        snapshot_matching(
            lambda t, x, c: (times.append(t), x)[1],
            AffinePath(LinearSchedule(), noise=0.3),
            OTCoupling(),
            clouds,
            times=YEARS,
            batch=16,
            weight=weight,
            marginal=True,
            generator=seeded(2),
        )
        for weight in (None, lambda t: 1 + t)
    )
    assert torch.allclose(weighted, (1 + times[0]) * plain)


def test_a_bridge_has_one_diffusion_in_mapped_time_and_a_score() -> None:
    """Across an interval of length h the spread in its middle is sigma sqrt(h) / 2."""
    sigma, n = 0.5, 4000
    clouds = [torch.zeros(n, 1) for _ in range(3)]
    seen = {}

    def field(t: Tensor, x: Tensor, c: Tensor | None) -> Tensor:
        seen.update(t=t, x=x)
        return torch.zeros_like(x)

    def score(t: Tensor, x: Tensor, c: Tensor | None) -> Tensor:
        start = torch.where(t < 0.2, 0.0, 0.2)
        h = torch.where(t < 0.2, 0.2, 0.8)
        return -x / (sigma**2 * (t - start) * (start + h - t) / h)[:, None]

    draw = lambda s, g: snapshot_matching(
        field,
        BridgePath(sigma),
        PairedCoupling(),
        clouds,
        times=[0.0, 1.0, 5.0],
        batch=n,
        law=UniformTimes(0.4999, 0.5001),
        score=s,
        generator=g,
    )
    both, flow = draw(score, seeded(3)), draw(None, seeded(3))
    assert torch.allclose(both, flow)  # the exact score of each pair has no error
    for early, h in ((True, 0.2), (False, 0.8)):
        x = seen["x"][(seen["t"] < 0.2) == early]
        wanted = sigma * math.sqrt(h) / 2
        assert abs(x.std() - wanted) < 6 * wanted / (2 * n) ** 0.5


def test_a_left_out_time_of_a_rotation_is_found_again() -> None:
    """Three snapshots of a cloud that turns, the middle one left out, learned in a Trainer."""
    torch.manual_seed(0)
    angles, mean = [0.0, 0.25, 0.5], torch.tensor([2.0, 0.0])
    turn = lambda a: torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])
    clouds = [
        (mean + 0.2 * torch.randn(n, 2)) @ turn(angle)
        for n, angle in zip((300, 9, 250), angles, strict=True)
    ]
    field = MLPField(2, hidden_features=(32, 32), frequencies=2).double()
    Trainer(
        field,
        lambda model, row, *, generator: snapshot_matching(
            model,
            LinearPath(),
            OTCoupling(),
            clouds,
            times=angles,
            leave_out=1,
            batch=64,
            generator=generator,
        ),
        steps=200,
        batch=1,
        lr=1e-2,
        schedule=CosineDecay(),
        progress=False,
    ).fit(torch.zeros(1, 1))
    u = unit_times(angles)
    start = (mean + 0.2 * torch.randn(500, 2)) @ turn(0.0)
    with torch.no_grad():
        path = ODE(field, RK4(4)).trajectory(start, [u[0], u[1], u[2]])
    for points, angle in zip(path[1:], angles[1:], strict=True):
        centre = mean @ turn(angle)
        assert (points.mean(0) - centre).norm() < 0.15  # the chord's sagitta is 0.06, the way 0.5
        assert abs(points.std(0).mean() - 0.2) < 0.05


def test_pushing_between_snapshots_is_a_trajectory() -> None:
    clouds = moving()
    ode = ODE(FunctionField(lambda t, x, c: torch.tensor([10.0, 0.0]).expand(x.shape)), RK4(4))
    u = unit_times(YEARS)
    there = ode.trajectory(clouds[1], [u[1], u[3]])[1]
    assert torch.allclose(there[:, 0], torch.tensor(10.0))
    assert torch.allclose(ode.trajectory(there, [u[3], u[1]])[1], clouds[1])
    assert torch.allclose(ode.push(State(clouds[0])).x[:, 0], torch.tensor(10.0))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"times": [0.0, 1.0, 1.0, 2.0]}, DomainError, "two or more, finite and rising"),
        ({"times": [0.0, 2.0, 1.0, 3.0]}, DomainError, "two or more, finite and rising"),
        ({"times": [0.0, 1.0, 2.0, math.nan]}, DomainError, "two or more, finite and rising"),
        ({"times": [0.0, 1.0, 2.0, math.inf]}, DomainError, "two or more, finite and rising"),
        ({"times": [0.0, 1.0, 2.0]}, ShapeError, "got 4 snapshots, 3 times"),
        ({"contexts": [torch.zeros(9, 1)]}, ShapeError, "got 4 snapshots, 4 times, 1 contexts"),
        ({"contexts": [torch.zeros(9, 1)] * 4}, ShapeError, r"contexts\[0\] must hold one"),
        ({"leave_out": 0}, DomainError, "between the first and the last of 4, got 0"),
        ({"leave_out": 3}, DomainError, "nothing bridges an end"),
        ({"leave_out": -1}, DomainError, "nothing bridges an end"),
        ({"batch": 0}, DomainError, "batch must be positive"),
        ({"score": lambda t, x, c: x}, DomainError, "a score needs a BridgePath, got LinearPath"),
        ({"coupling": PairedCoupling()}, ShapeError, "snapshots 0 and 1 hold 60 and 80 points"),
        ({"marginal": True}, DomainError, "averaged targets"),
        ({"snapshots": 1}, ShapeError, r"got shape \(0, 2\) for number 1"),
        ({"snapshots": 2}, ShapeError, r"got shape \(5, 3\) for number 2"),
        ({"snapshots": 3}, DomainError, "points must be floating"),
    ],
    ids=lambda v: "" if not isinstance(v, dict) else "+".join(v),
)
def test_bad_input_is_refused(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    clouds, change = moving(), dict(change)
    bad = {1: torch.zeros(0, 2), 2: torch.zeros(5, 3), 3: torch.zeros(5, 2, dtype=torch.long)}
    number = change.pop("snapshots", None)
    if isinstance(number, int):
        clouds[number] = bad[number]
    coupling = change.pop("coupling", OTCoupling())
    options = {"times": YEARS, "batch": 8, **change}
    with pytest.raises(error, match=message):
        snapshot_matching(lambda t, x, c: x, LinearPath(), coupling, clouds, **options)
