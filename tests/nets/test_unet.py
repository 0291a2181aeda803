"""UNet: any size and batch axes, published parameter counts, every pixel within reach, dtypes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cflow.errors import DomainError, ShapeError
from cflow.nets import GroupNorm, UNet

SMALL: dict[str, Any] = dict(condition=6, width=8, multipliers=(1, 2), blocks=1, heads=2)


def away(net: UNet) -> UNet:
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net.eval()


@pytest.mark.parametrize("batch", [(), (0,), (4,), (2, 3), (2, 0)], ids=str)
def test_any_batch_axes(batch: tuple[int, ...]) -> None:
    net = away(UNet(2, 3, tokens=5, **SMALL))
    x, c, tokens = torch.randn(*batch, 2, 4, 5), torch.randn(*batch, 6), torch.randn(*batch, 7, 5)
    y = net(x, c, tokens)
    assert y.shape == (*batch, 3, 4, 5)
    flat = net(x.reshape(-1, 2, 4, 5), c.reshape(-1, 6), tokens.reshape(-1, 7, 5))
    assert torch.allclose(y.reshape(-1, 3, 4, 5), flat, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(28, 28), (7, 5), (1, 9), (1, 1)], ids=str)
def test_images_of_any_size_keep_theirs(size: tuple[int, int]) -> None:
    net = away(UNet(1, 1, **{**SMALL, "multipliers": (1, 1, 2)}, attention=(0, 2)))
    x = torch.randn(2, 1, *size)
    y = net(x, torch.randn(2, 6))
    assert y.shape == x.shape
    assert bool((y[0] != y[1]).any())


@pytest.mark.parametrize("attention", [(), (0, 1)], ids=str)
def test_every_pixel_reaches_every_output(attention: tuple[int, ...]) -> None:
    net, c = away(UNet(2, 2, attention=attention, **SMALL)), torch.randn(6)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, c), torch.randn(2, 6, 7))
    assert bool((jacobian != 0).all())
    condition = torch.autograd.functional.jacobian(lambda c: net(torch.ones(2, 6, 7), c), c)
    assert bool((condition != 0).all())


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 1, 1)], ids=str)
def test_far_pixels_pass_through_the_middle(multipliers: tuple[int, ...]) -> None:
    """Eighty pixels lie beyond the reach of convolutions, so what sees them is the middle.

    It stands at the coarsest resolution: the way there and back is held as well.
    """
    net = away(UNet(1, 1, attention=(), **{**SMALL, "multipliers": multipliers}))
    c = torch.randn(6)
    for part in net.modules():
        if isinstance(part, GroupNorm):  # which couples all pixels as well
            part.forward = lambda h: h

    def reached() -> int:
        jacobian = torch.autograd.functional.jacobian(lambda x: net(x, c), torch.randn(1, 1, 80))
        return int((jacobian[0, 0, 0] != 0).sum())

    assert reached() == 80
    nn.init.zeros_(net.get_parameter("middle.0.attention.look.merge.weight"))
    assert 8 < reached() < 80


def test_the_size_is_that_of_ddpm_on_cifar10() -> None:
    """35,746,307 parameters, and a scale beside each of the shifts that its 4992 channels have."""
    with torch.device("meta"):
        net = UNet(3, 3, condition=512, width=128, multipliers=(1, 2, 2, 2), attention=(1,))
        time = nn.Sequential(nn.Linear(128, 512), nn.Linear(512, 512))
    count = sum(p.numel() for part in (net, time) for p in part.parameters())
    assert count == 35_746_307 + 4992 * (512 + 1)


def test_it_starts_at_zero_and_knows_no_batch_mates() -> None:
    x, c = torch.randn(4, 2, 4, 5), torch.randn(4, 6)
    assert torch.equal(UNet(2, 3, **SMALL)(x, c), torch.zeros(4, 3, 4, 5))
    net = away(UNet(2, 3, **SMALL)).train()
    assert torch.allclose(net(x, c)[1:2], net(x[1:2], c[1:2]), rtol=0, atol=1e-12)


def test_blocks_start_as_what_passes_them_by() -> None:
    """One resolution, no change of channels: the way down is the identity until training moves."""
    net = UNet(2, 3, **{**SMALL, "multipliers": (1,)}, attention=(0,))
    seen: list[Tensor] = []
    net.first.register_forward_hook(lambda *given: seen.append(given[2]))
    for part in (*net.down, *net.middle):
        part.register_forward_hook(lambda *given: seen.append(given[2]))
    net(torch.randn(4, 2, 4, 5), torch.randn(4, 6))
    assert len(seen) == 4
    assert all(torch.equal(h, seen[0]) for h in seen)


def test_dropout_belongs_to_training() -> None:
    net, x, c = away(UNet(2, 2, dropout=0.5, **SMALL)), torch.randn(4, 2, 4, 5), torch.randn(4, 6)
    assert torch.equal(net(x, c), net(x, c))
    net.train()
    assert not torch.equal(net(x, c), net(x, c))


def test_low_precision_takes_points_of_any() -> None:
    net, x, c = away(UNet(2, 2, tokens=3, **SMALL)), torch.randn(4, 2, 4, 5), torch.randn(4, 6)
    tokens = torch.randn(4, 7, 3)
    exact = net(x, c, tokens)
    low = net.to(torch.bfloat16)(x.float(), c.float(), tokens.float())
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.double(), exact, rtol=0.1, atol=0.1 * exact.abs().max().item())


@pytest.mark.unchecked
def test_it_compiles_as_one_graph_and_goes_through_torch_func() -> None:
    net = away(UNet(1, 1, tokens=3, **{**SMALL, "multipliers": (1,)}, attention=()))
    x, c, tokens = torch.randn(3, 1, 4, 5), torch.randn(3, 6), torch.randn(3, 7, 3)
    y, v = net(x, c, tokens), torch.randn(3, 1, 4, 5)
    traced = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert torch.allclose(traced(x, c, tokens), y, rtol=0, atol=1e-12)
    at = lambda z: net(z, c, tokens)
    forward = torch.func.jvp(at, (x,), (v,))[1]
    pull_back = torch.func.vjp(at, x)[1]
    assert torch.allclose((forward * v).sum(), (pull_back(v)[0] * v).sum(), rtol=0, atol=1e-10)
    each = torch.func.vmap(net)(x, c, tokens)
    assert torch.allclose(each, y, rtol=0, atol=1e-12)


def test_bad_sizes_are_refused_in_words() -> None:
    net = UNet(2, 2, **SMALL)
    with pytest.raises(ShapeError, match=r"x must end in \(2, height, width\), got \(3, 4, 4\)"):
        net(torch.zeros(3, 4, 4), torch.zeros(6))
    with pytest.raises(ShapeError, match=r"condition must end in shape \(6,\), got \(5,\)"):
        net(torch.zeros(2, 4, 4), torch.zeros(5))
    with pytest.raises(DomainError, match=r"sizes must be positive, got channels=0, outputs=2"):
        UNet(0, 2, **SMALL)
    with pytest.raises(DomainError, match=r"to 1, the coarsest of 2 multipliers, got \(2,\)"):
        UNet(2, 2, **SMALL, attention=(2,))
    with pytest.raises(DomainError, match="heads divide width, got width=16, heads=3"):
        UNet(2, 2, **{**SMALL, "heads": 3})
    with pytest.raises(DomainError, match=r"dropout must lie in \[0, 1\), got 1"):
        UNet(2, 2, **SMALL, dropout=1.0)
