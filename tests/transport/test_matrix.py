"""Factored matrices: determinants against slogdet, inverses, starts, and errors in words."""

import pytest
import torch
from torch import nn

from cflow import State, tracked
from cflow.errors import DomainError, ShapeError
from cflow.transport import (
    HouseholderLinear,
    LULinear,
    MatrixLayer,
    QRLinear,
    Rotation,
    SVDLinear,
)
from cflow.transport.householder import Reflections

N = 7
KINDS = {
    "lu": lambda: LULinear(N),
    "lu, permuted": lambda: LULinear(N, permutation=torch.randperm(N)),
    "lu, orthogonal": lambda: LULinear(N, start="orthogonal"),
    "qr": lambda: QRLinear(N),
    "qr, odd": lambda: QRLinear(N, reflections=3),
    "svd": lambda: SVDLinear(N, reflections=4),
    "householder": lambda: HouseholderLinear(N),
    "rotation": lambda: Rotation(N),
    "rotation, no bias": lambda: Rotation(N, bias=False),
}
every = pytest.mark.parametrize("build", KINDS.values(), ids=KINDS.keys())


def away(build) -> MatrixLayer:
    """Build a layer and move every parameter away from its start."""
    layer = build()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return layer


def dense(layer: MatrixLayer) -> torch.Tensor:
    """Read the matrix off the columns that push makes of unit vectors."""
    origin = layer.push(State(torch.zeros(N))).x
    return (layer.push(State(torch.eye(N))).x - origin).mT


@every
def test_ladj_is_slogdet_of_the_matrix_that_push_applies(build) -> None:
    layer = away(build)
    expected = torch.linalg.slogdet(dense(layer)).logabsdet
    for method, sign in ((layer.push, 1), (layer.pull, -1)):
        ladj = method(tracked(torch.randn(4, N))).ladj
        assert torch.allclose(ladj, sign * expected.expand(4), rtol=0, atol=1e-11)


@every
def test_pull_applies_the_inverse_of_the_dense_matrix(build) -> None:
    layer = away(build)
    y, origin = torch.randn(4, N), layer.push(State(torch.zeros(N))).x
    expected = torch.linalg.solve(dense(layer), (y - origin).mT).mT
    assert torch.allclose(layer.pull(State(y)).x, expected, rtol=0, atol=1e-9)


@every
def test_float32_returns_what_it_was_given(build) -> None:
    layer, x = away(build).float(), torch.randn(100, N, dtype=torch.float32)
    back = layer.pull(layer.push(State(x))).x
    assert torch.allclose(back, x, rtol=0, atol=5e-4)


def test_starts() -> None:
    x = torch.randn(4, N)
    order = torch.randperm(N)
    for layer in (LULinear(N), QRLinear(N), SVDLinear(N), HouseholderLinear(N), Rotation(N)):
        assert torch.allclose(layer.push(State(x)).x, x, rtol=0, atol=1e-12)
    assert torch.equal(LULinear(N, permutation=order).push(State(x)).x, x[:, order])
    for _ in range(10):  # signs of the diagonal differ from draw to draw
        w = dense(LULinear(N, start="orthogonal"))
        assert torch.allclose(w @ w.mT, torch.eye(N), rtol=0, atol=1e-12)
    assert not torch.allclose(w.abs().amax(0), torch.ones(N))  # no mere permutation


@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_reflections_all_at_once_are_their_product_one_by_one(count: int) -> None:
    layer = Reflections(N, count)
    nn.init.normal_(layer.vectors)
    product = torch.eye(N)
    for v in layer.vectors.detach():
        product = product @ (torch.eye(N) - 2 * torch.outer(v, v) / v.dot(v))
    matrix = layer.matrix(torch.float64)
    assert torch.allclose(matrix, product, rtol=0, atol=1e-12)
    assert torch.allclose(torch.linalg.det(matrix), torch.tensor((-1.0) ** count))


def test_rotations_do_not_reflect_and_low_precision_points_keep_their_dtype() -> None:
    assert torch.allclose(torch.linalg.det(dense(away(lambda: Rotation(N)))), torch.tensor(1.0))
    layer = away(lambda: LULinear(N)).to(torch.bfloat16)
    state = layer.push(tracked(torch.randn(3, N, dtype=torch.bfloat16)))
    assert (state.x.dtype, state.ladj.dtype) == (torch.bfloat16, torch.float32)


def test_what_makes_no_matrix_is_refused_in_words() -> None:
    with pytest.raises(DomainError, match="every index of 3 features once, got"):
        LULinear(3, permutation=[0, 0, 1])
    with pytest.raises(DomainError, match="brings its own permutation"):
        LULinear(3, permutation=[0, 2, 1], start="orthogonal")
    with pytest.raises(DomainError, match="LULinear: features must be positive, got 0"):
        LULinear(0)
    with pytest.raises(DomainError, match="Reflections: sizes must be positive"):
        HouseholderLinear(3, reflections=0)
    with pytest.raises(DomainError, match="at least 2 features can turn"):
        Rotation(1)
    with pytest.raises(ShapeError, match=r"LULinear.push: points must end in shape \(3,\)"):
        LULinear(3).push(State(torch.zeros(2, 4)))
