"""Convolutional networks: batch axes, contexts of both kinds, dtype, starts, errors in words."""

import pytest
import torch

from cflow.errors import DomainError, ShapeError
from cflow.nets import ConstantMaps, ConvNet, GatedConvNet, OneHot

KINDS = pytest.mark.parametrize(
    "build",
    [
        lambda **options: ConvNet(2, 3, hidden_channels=8, **options),
        lambda **options: GatedConvNet(2, 3, hidden_channels=8, blocks=2, **options),
    ],
    ids=["plain", "gated"],
)


@KINDS
@pytest.mark.parametrize("batch", [(), (0,), (4,), (2, 3), (2, 0)], ids=str)
def test_any_batch_axes(build, batch: tuple[int, ...]) -> None:
    net, x, context = (
        build(context=2, zero_last=False),
        torch.randn(*batch, 2, 4, 5),
        torch.randn(*batch, 2),
    )
    y = net(x, context)
    assert y.shape == (*batch, 3, 4, 5)
    flat = net(x.reshape(-1, 2, 4, 5), context.reshape(-1, 2))
    assert torch.allclose(y.reshape(-1, 3, 4, 5), flat, rtol=0, atol=1e-12)


@KINDS
def test_a_context_vector_is_constant_maps_and_finer_maps_are_averaged(build) -> None:
    net, x, context = build(context=2, zero_last=False), torch.randn(4, 2, 4, 6), torch.randn(4, 2)
    maps = context[..., None, None].expand(4, 2, 4, 6)
    assert torch.allclose(net(x, context), net(x, maps), rtol=0, atol=1e-12)
    fine = torch.randn(4, 2, 8, 18)
    coarse = fine.unflatten(-2, (4, 2)).unflatten(-1, (6, 3)).mean((-1, -3))
    assert torch.allclose(net(x, fine), net(x, coarse), rtol=0, atol=1e-12)
    assert not torch.allclose(net(x, fine), net(x, 2 * coarse))
    with pytest.raises(ShapeError, match="maps of 5 x 6 do not divide onto a grid of 4 x 6"):
        net(x, torch.zeros(4, 2, 5, 6))
    with pytest.raises(ShapeError, match=r"the context must be vectors \(2,\) or maps"):
        net(x, torch.zeros(4, 3))


@KINDS
def test_nets_start_at_zero_and_take_points_of_any_dtype(build) -> None:
    net = build()
    assert torch.equal(net(torch.randn(4, 2, 4, 4)), torch.zeros(4, 3, 4, 4))
    low = build(zero_last=False).to(torch.bfloat16)
    y = low(torch.randn(4, 2, 4, 4, dtype=torch.float32))
    assert y.dtype == torch.bfloat16
    assert bool(torch.isfinite(y).all())
    with pytest.raises(ShapeError, match=r"x must end in \(2, height, width\), got \(3, 4, 4\)"):
        net(torch.zeros(3, 4, 4))


def test_constants_and_labels() -> None:
    maps = ConstantMaps(3, context=2)
    assert torch.equal(maps(torch.zeros(5, 0, 2, 2), torch.ones(5, 2)), torch.zeros(5, 3, 2, 2))
    torch.nn.init.normal_(maps.constants)
    torch.nn.init.normal_(maps.context.weight)
    y = maps(torch.zeros(5, 7, 2, 2), torch.ones(5, 2))
    expected = maps.constants + maps.context.weight.flatten(1).sum(1)
    assert torch.allclose(y, expected[:, None, None].expand(5, 3, 2, 2))
    fine = torch.randn(5, 2, 4, 4)
    y = maps(torch.zeros(5, 0, 2, 2), fine)
    mean = fine.unflatten(-2, (2, 2)).unflatten(-1, (2, 2)).mean((-1, -3))
    assert torch.allclose(y, maps(torch.zeros(5, 3, 2, 2), mean), rtol=0, atol=1e-12)
    assert torch.allclose(maps(torch.zeros(0, 2, 2), fine[0]), y[0], rtol=0, atol=1e-12)
    labels = torch.tensor([[1, 0], [2, 2]])
    assert torch.equal(OneHot(3)(labels).argmax(-1), labels)
    with pytest.raises(DomainError, match=r"labels must be integers, got torch.float64"):
        OneHot(3)(torch.zeros(2))
    with pytest.raises(IndexError):
        OneHot(3)(torch.tensor([3]))
    for wrong in (lambda: ConvNet(0, 2), lambda: GatedConvNet(1, 2, blocks=0), lambda: OneHot(0)):
        with pytest.raises(DomainError, match="must be positive"):
            wrong()
