"""DiT: published sizes, patches as a set until positions name them, AdaLN-Zero, dtypes."""

from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from cflow.errors import DomainError, ShapeError
from cflow.nets import DiT
from cflow.nets.dit import positions

SMALL: dict[str, Any] = dict(condition=6, patch=2, width=16, layers=2, heads=2)


def away(net: DiT) -> DiT:
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.eval()


@pytest.mark.parametrize("batch", [(), (0,), (4,), (2, 3), (2, 0)], ids=str)
def test_any_batch_axes(batch: tuple[int, ...]) -> None:
    net = away(DiT((2, 4, 6), 3, tokens=5, **SMALL))
    x, c, tokens = torch.randn(*batch, 2, 4, 6), torch.randn(*batch, 6), torch.randn(*batch, 7, 5)
    y = net(x, c, tokens)
    assert y.shape == (*batch, 3, 4, 6)
    flat = net(x.reshape(-1, 2, 4, 6), c.reshape(-1, 6), tokens.reshape(-1, 7, 5))
    assert torch.allclose(y.reshape(-1, 3, 4, 6), flat, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("width", "layers", "heads", "millions"),
    [(384, 12, 6, 33), (768, 12, 12, 130), (1024, 24, 16, 458), (1152, 28, 16, 675)],
    ids=["S/2", "B/2", "L/2", "XL/2"],
)
def test_sizes_are_the_published_ones(width: int, layers: int, heads: int, millions: int) -> None:
    """Table 1 and appendix B of the paper, whose network predicts a variance beside the noise."""
    with torch.device("meta"):
        net = DiT((4, 32, 32), 8, condition=width, width=width, layers=layers, heads=heads)
        time = nn.Sequential(nn.Linear(256, width), nn.Linear(width, width))
        labels = nn.Embedding(1001, width)
    count = sum(p.numel() for part in (net, time, labels) for p in part.parameters())
    block = (12 * width**2 + 9 * width) + (6 * width**2 + 6 * width) + 4 * width
    rest = (256 + width + 2) * width + 1001 * width + (16 + 1) * width
    last = 2 * (width**2 + width) + (width + 1) * 32
    assert count == layers * block - 4 * layers * width + rest + last
    assert round(count / 1e6) == millions


def test_patches_are_a_set_until_positions_name_them() -> None:
    net, x, c = away(DiT((1, 4, 6), 1, **SMALL)), torch.randn(3, 1, 4, 6), torch.randn(3, 6)
    order = torch.randperm(6)

    def moved(z: Tensor) -> Tensor:
        patches = rearrange(z, "b c (h p) (w q) -> b c (h w) p q", p=2, q=2)[:, :, order]
        return rearrange(patches, "b c (h w) p q -> b c (h p) (w q)", h=2)

    assert not torch.allclose(net(moved(x), c), moved(net(x, c)), rtol=0, atol=1e-2)
    net.positions = torch.zeros_like(net.positions)
    assert torch.allclose(net(moved(x), c), moved(net(x, c)), rtol=0, atol=1e-12)


def test_positions_tell_all_places_apart_and_know_distances() -> None:
    grid = positions(5, 7, 16)
    assert grid.shape == (35, 16)
    gaps = torch.cdist(grid, grid)
    assert bool((gaps[~torch.eye(35).bool()] > 0.1).all())
    assert torch.allclose(gaps[0, 1], gaps[8, 9])  # one column apart, wherever it is
    assert torch.allclose(gaps[0, 7], gaps[2, 9])  # one row apart
    assert torch.allclose(gaps[0, 7], gaps[0, 1])


def test_every_pixel_reaches_every_output() -> None:
    net, c = away(DiT((2, 4, 6), 2, **SMALL)), torch.randn(6)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, c), torch.randn(2, 4, 6))
    assert bool((jacobian != 0).all())
    condition = torch.autograd.functional.jacobian(lambda c: net(torch.randn(2, 4, 6), c), c)
    assert bool((condition != 0).all())


def test_it_starts_at_zero_with_blocks_that_are_the_identity() -> None:
    net, x, c = DiT((1, 4, 6), 1, tokens=3, **SMALL), torch.randn(1, 4, 6), torch.randn(6)
    tokens = torch.randn(7, 3)
    assert torch.equal(net(x, c, tokens), torch.zeros(1, 4, 6))
    nn.init.normal_(net.last.weight)
    jacobian = torch.autograd.functional.jacobian(lambda z: net(z, c, tokens), x)[0, :, :, 0]
    assert bool((jacobian[:2, :2, :2, :2] != 0).all())
    assert bool((jacobian[:2, :2, 2:] == 0).all() & (jacobian[:2, :2, :2, 2:] == 0).all())


def test_samples_know_no_batch_mates_and_dropout_belongs_to_training() -> None:
    net = away(DiT((1, 4, 6), 1, dropout=0.5, **SMALL))
    x, c = torch.randn(4, 1, 4, 6), torch.randn(4, 6)
    assert torch.allclose(net(x, c)[1:2], net(x[1:2], c[1:2]), rtol=0, atol=1e-12)
    net.train()
    assert not torch.equal(net(x, c), net(x, c))


def test_low_precision_takes_points_of_any() -> None:
    net, x, c = (
        away(DiT((1, 4, 6), 1, tokens=3, **SMALL)),
        torch.randn(4, 1, 4, 6),
        torch.randn(4, 6),
    )
    tokens = torch.randn(4, 7, 3)
    exact = net(x, c, tokens)
    low = net.to(torch.bfloat16)(x.float(), c.float(), tokens.float())
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.double(), exact, rtol=0.1, atol=0.1 * exact.abs().max().item())


@pytest.mark.unchecked
def test_it_compiles_as_one_graph_and_goes_through_torch_func() -> None:
    net = away(DiT((1, 4, 6), 1, tokens=3, **SMALL))
    x, c, tokens = torch.randn(3, 1, 4, 6), torch.randn(3, 6), torch.randn(3, 7, 3)
    y, v = net(x, c, tokens), torch.randn(3, 1, 4, 6)
    traced = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert torch.allclose(traced(x, c, tokens), y, rtol=0, atol=1e-11)
    at = lambda z: net(z, c, tokens)
    forward = torch.func.jvp(at, (x,), (v,))[1]
    pull_back = torch.func.vjp(at, x)[1]
    assert torch.allclose((forward * v).sum(), (pull_back(v)[0] * v).sum(), rtol=0, atol=1e-9)
    each = torch.func.vmap(net)(x, c, tokens)
    assert torch.allclose(each, y, rtol=0, atol=1e-11)


def test_bad_sizes_are_refused_in_words() -> None:
    net = DiT((2, 4, 6), 2, **SMALL)
    with pytest.raises(ShapeError, match=r"x must end in shape \(2, 4, 6\), got \(2, 4, 4\)"):
        net(torch.zeros(2, 4, 4), torch.zeros(6))
    with pytest.raises(ShapeError, match=r"condition must end in shape \(6,\), got \(5,\)"):
        net(torch.zeros(2, 4, 6), torch.zeros(5))
    with pytest.raises(
        ShapeError, match=r"shape must be \(channels, height, width\), got \(4, 6\)"
    ):
        DiT((4, 6), 1, **SMALL)
    with pytest.raises(DomainError, match=r"got patch=2 for \(1, 4, 5\)"):
        DiT((1, 4, 5), 1, **SMALL)
    with pytest.raises(DomainError, match=r"a multiple of 4 and of heads, got .* heads=3"):
        DiT((1, 4, 6), 1, **{**SMALL, "heads": 3})
    with pytest.raises(DomainError, match=r"a multiple of 4 and of heads, got .* width=18"):
        DiT((1, 4, 6), 1, **{**SMALL, "width": 18})
    with pytest.raises(DomainError, match=r"dropout must lie in \[0, 1\), got -0\.1"):
        DiT((1, 4, 6), 1, **SMALL, dropout=-0.1)
