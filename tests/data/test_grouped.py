"""Splits by rows and by groups, copies, steps of rounding, blocks of the earth."""

import math

import pytest
import torch

from cflow.data import grouped_split, random_split
from cflow.data.grouped import blocks, distinct, jitter, resolution
from cflow.errors import DomainError, ShapeError


def test_random_rows_are_those_of_the_published_protocol() -> None:
    x = torch.randn(827, 2)
    theirs = torch.utils.data.random_split(
        range(827), [663, 82, 82], generator=torch.Generator().manual_seed(3)
    )
    for part, wanted in zip(random_split(x, seed=3), theirs, strict=True):
        assert torch.equal(part, x[wanted.indices])
    assert sum(map(len, random_split(x))) == 827


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_parts_near_their_share(seed: int) -> None:
    sizes = [3000, 1500] + [300] * 5 + [50] * 40 + list(range(1, 60))
    groups = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    groups = groups[torch.randperm(len(groups))]
    rows = torch.arange(len(groups))
    split = grouped_split(rows, groups, seed=seed)
    assert torch.equal(torch.cat(list(split)).sort().values, rows)
    for part, share in zip(split, (0.8, 0.1, 0.1), strict=True):
        assert len(part) == pytest.approx(share * len(rows), abs=3)
    owners = [set(groups[part].tolist()) for part in split]
    assert not owners[0] & owners[1] | owners[0] & owners[2] | owners[1] & owners[2]
    assert {0, 1} <= owners[0]
    names = [f"group {k}" for k in groups.tolist()]
    assert [len(part) for part in grouped_split(rows, names, seed=seed)] == pytest.approx(
        [len(part) for part in split], abs=3
    )


def test_each_group_is_tested_as_often_as_its_share() -> None:
    """Groups of equal size; 400 seeds; false-alarm rate 1e-4 over the 20 groups together."""
    groups = torch.arange(20).repeat_interleave(5)
    tested = torch.zeros(20)
    for seed in range(400):
        split = grouped_split(groups, groups, seed=seed)
        assert [len(part) for part in split] == [80, 10, 10]
        tested[split.test.unique()] += 1
    # Each is tested with probability 1 / 10: 40 times, deviation 6; 4.6 deviations two-sided.
    assert (tested - 40).abs().max() < 4.6 * 6


def test_other_fractions() -> None:
    groups = torch.arange(100)
    split = grouped_split(torch.randn(100, 3, 2), groups, fractions=(0.5, 0.2, 0.3))
    assert [part.shape for part in split] == [(50, 3, 2), (20, 3, 2), (30, 3, 2)]


def test_copies_are_found_exactly() -> None:
    x = torch.tensor([[1.0, 2], [3, 4], [1, 2], [1, 2 + 1e-15], [0, 0], [-0.0, 0], [3, 4]])
    assert distinct(x).tolist() == [0, 1, 3, 4]
    assert distinct(torch.tensor([5, 5, 4])).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ([12.5, -3.25], 0.01),
        ([3.0, -150.0], 1.0),
        ([0.1, 0.2, 179.9], 0.1),
        ([-169.168933, 0.5], 1e-6),
        ([1 / 3], 1e-9),
        ([0.0], 1.0),
    ],
)
def test_the_step_of_rounding_is_found(values: list[float], step: float) -> None:
    assert resolution(torch.tensor(values)) == step


def test_steps_are_found_for_all_decimals() -> None:
    for places in range(1, 8):
        whole = torch.randint(-(10 ** (places + 2)), 10 ** (places + 2), (1000,))
        x = torch.tensor([float(f"{k}e-{places}") for k in whole.tolist()])
        assert resolution(x) == float(f"1e-{places}")


def test_spreading_is_even() -> None:
    """Fixed seed; false-alarm rate below 1e-5 for each moment."""
    x = torch.full((20_000,), 7.25)
    u = (jitter(x, 0.01, generator=torch.Generator().manual_seed(0)) - x) / 0.01
    assert u.abs().max() <= 0.5 + 1e-9
    assert abs(u.mean()) < 4.5 * math.sqrt(1 / 12 / len(u))
    assert abs((u**2).mean() - 1 / 12) < 4.5 * math.sqrt(1 / 180 / len(u))
    steps = torch.tensor([[1.0], [1e-3]])
    moved = jitter(torch.zeros(2, 1000), steps)
    assert (moved.abs() <= steps / 2).all()
    assert jitter(torch.zeros(3).float(), 0.1).dtype == torch.float32


def test_blocks_cover_the_earth() -> None:
    latitude = torch.arange(-89.5, 90)
    longitude = torch.arange(-179.5, 180)
    degrees = torch.cartesian_prod(latitude, longitude)
    found, counts = blocks(degrees).unique(return_counts=True)
    assert torch.equal(found, torch.arange(18 * 36))
    assert (counts == 100).all()
    assert torch.equal(blocks(degrees + torch.tensor([0.0, 360.0])), blocks(degrees))
    assert blocks(degrees.reshape(180, 360, 2), size=30.0).unique().numel() == 6 * 12
    edges = torch.tensor([[0.0, 0.0], [-1e-9, -1e-9], [90.0, 180.0], [90.0, -180.0]])
    assert blocks(edges).tolist() == [9 * 36 + 18, 8 * 36 + 17, 17 * 36, 17 * 36]


def test_bad_arguments_are_refused() -> None:
    x = torch.zeros(12, 2)
    with pytest.raises(ShapeError, match="10 rows or more"):
        random_split(torch.zeros(9, 2))
    with pytest.raises(ShapeError, match=r"got groups \(11,\) for rows of shape \(12, 2\)"):
        grouped_split(x, torch.arange(11))
    with pytest.raises(ShapeError, match=r"got groups 3 for"):
        grouped_split(x, ["a", "b", "c"])
    with pytest.raises(DomainError, match=r"sum to 1, got \(0.8, 0.1, 0.2\)"):
        grouped_split(x, torch.arange(12), fractions=(0.8, 0.1, 0.2))
    with pytest.raises(DomainError, match=r"2 groups, the largest of 6 rows, .*one stays empty"):
        grouped_split(x, torch.arange(12) // 6)
    with pytest.raises(ShapeError, match="expected rows"):
        distinct(torch.tensor(1.0))
    with pytest.raises(DomainError, match=r"float64, got torch\.float32"):
        resolution(torch.zeros(3).float())
    with pytest.raises(DomainError, match="finite"):
        resolution(torch.tensor([math.inf]))
    with pytest.raises(DomainError, match="floating"):
        jitter(torch.tensor([1, 2]), 0.1)
    for step in (0.0, -1.0, math.nan, torch.tensor([0.1, 0.0])):
        with pytest.raises(DomainError, match="step must be positive"):
            jitter(torch.zeros(2), step)
    with pytest.raises(ShapeError, match=r"\(3,\)"):
        blocks(torch.zeros(3))
    with pytest.raises(DomainError, match="divide 180 degrees, got 7"):
        blocks(torch.zeros(2), size=7.0)
