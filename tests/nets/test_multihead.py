"""Attention: against torch's own module, fused against written out, and what a null token says."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cflow.errors import DomainError, ShapeError
from cflow.nets import CrossAttention, GroupNorm, SelfAttention
from cflow.nets.modulation import layer_norm
from cflow.nets.multihead import attend


def test_self_attention_is_that_of_torch() -> None:
    ours, theirs = SelfAttention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.mix.weight.data, ours.mix.bias.data
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = (
        ours.merge.weight.data,
        ours.merge.bias.data,
    )
    h = torch.randn(4, 5, 12)
    assert torch.allclose(ours(h), theirs(h, h, h)[0], rtol=0, atol=1e-12)


def test_cross_attention_reads_a_set_of_tokens_and_zeros_say_nothing() -> None:
    net = CrossAttention(8, 2, tokens=3, zero_last=False)
    h, tokens = torch.randn(4, 5, 8), torch.randn(4, 6, 3)
    y = net(h, tokens)
    assert torch.allclose(net(h, tokens.flip(-2)), y, rtol=0, atol=1e-12)
    assert bool((net(h, 2 * tokens) - y).abs().amax((1, 2)).gt(1e-3).all())
    assert torch.allclose(net(h), net(h, torch.zeros(4, 7, 3)), rtol=0, atol=1e-12)
    assert torch.allclose(net(h), net.merge.bias.expand(4, 5, 8), rtol=0, atol=1e-12)
    with pytest.raises(ShapeError, match=r"tokens must end in shape \(3,\), got \(4, 6, 2\)"):
        net(h, tokens[..., :2])


@pytest.mark.unchecked
def test_fused_and_written_out_attention_agree() -> None:
    query, key, value = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 5, 6), torch.randn(2, 3, 5, 6)
    plain = attend(query, key, value)
    assert torch.allclose(torch.func.vjp(attend, query, key, value)[0], plain, rtol=0, atol=1e-14)
    weights = (query @ key.mT / 6**0.5).exp()
    expected = weights / weights.sum(-1, keepdim=True) @ value
    assert torch.allclose(plain, expected, rtol=0, atol=1e-14)
    wide = torch.randn(2, 3, 300, 6)  # the kernel's
    written = torch.func.vjp(attend, query, wide, wide)[0]
    assert torch.allclose(attend(query, wide, wide), written, rtol=0, atol=1e-13)
    traced = torch.compile(attend, fullgraph=True, backend="aot_eager")
    assert torch.allclose(traced(query, key, value), plain, rtol=0, atol=1e-14)
    exported = torch.export.export(_Attend(), (query, key, value))
    assert "scaled_dot_product_attention" in str(exported.graph)
    low = torch.func.vjp(attend, *(z.bfloat16() for z in (query, key, value)))[0]
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.double(), plain, rtol=0, atol=0.05)


class _Attend(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value)


@pytest.mark.unchecked
def test_attention_is_written_out_in_a_compiled_graph_under_torch_func() -> None:
    """One compiled graph takes both ways: the fused kernel has no forward mode."""
    query, key, v = torch.randn(2, 4, 6), torch.randn(2, 5, 6), torch.randn(2, 4, 6)
    plain = lambda z: attend(z, key, key)
    whole = lambda z: torch.func.jvp(plain, (z,), (v,))[1] + plain(z)
    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(query), whole(query), rtol=0, atol=1e-14)


def test_norms_are_those_of_torch_and_leave_nothing_alone() -> None:
    h = 3 + 2 * torch.randn(4, 64, 3, 5)
    assert torch.allclose(GroupNorm(64)(h), nn.GroupNorm(16, 64, 1e-6)(h), rtol=0, atol=1e-12)
    assert torch.allclose(layer_norm(h), nn.LayerNorm(5, 1e-6)(h), rtol=0, atol=1e-12)
    scale, shift = torch.randn(5), torch.randn(5)
    scaled = functional.layer_norm(h, (5,), scale, shift, 1e-6)
    assert torch.allclose(layer_norm(h, scale, shift), scaled, rtol=0, atol=1e-12)
    under_func = torch.func.vmap(lambda z: layer_norm(z, scale, shift))(h)  # written out there
    assert torch.allclose(under_func, scaled, rtol=0, atol=1e-12)
    one_pixel = GroupNorm(8)(torch.randn(4, 8, 1, 1))
    assert bool((one_pixel.abs() > 1e-6).any(1).all())  # groups of one channel would all be zero
    assert [GroupNorm(c).groups for c in (1, 2, 6, 24, 32, 256)] == [1, 1, 1, 4, 8, 32]


def test_gradients_of_forward_mode_are_those_of_reverse_mode() -> None:
    """torch's own layer norm fails this by a quarter; a checkpointed divergence relies on it."""
    weight = torch.randn(5, 5, requires_grad=True)
    h, v = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    learned = lambda z: layer_norm(z, torch.arange(1.0, 6.0), torch.ones(5))
    for norm in (layer_norm, learned, lambda z: GroupNorm(4)(z[..., None])[..., 0]):
        at = lambda z, norm=norm: norm(z @ weight) @ weight
        forward = (torch.func.jvp(at, (h,), (v,))[1] * v).sum()
        reverse = (torch.func.vjp(at, h)[1](v)[0] * v).sum()
        (first,), (second,) = (torch.autograd.grad(z, weight) for z in (forward, reverse))
        assert torch.allclose(first, second, rtol=0, atol=1e-10)


def test_bad_heads_are_refused_in_words() -> None:
    with pytest.raises(DomainError, match="heads divide width, got width=8, heads=3"):
        SelfAttention(8, 3)
    with pytest.raises(DomainError, match="heads divide width, got width=0, heads=1"):
        CrossAttention(0, 1, tokens=2)
    with pytest.raises(DomainError, match="tokens must have a positive length, got 0"):
        CrossAttention(8, 2, tokens=0)
