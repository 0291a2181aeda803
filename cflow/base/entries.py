"""What laws share: widening, what they keep, sums over an event, noise, and the normal density."""

import math

import torch
from torch import Generator, Tensor, nn

__all__ = ["held", "noise", "normal_log_prob", "summed", "wide"]


def wide(x: Tensor) -> Tensor:
    """Widen to float32 at least.

    Example:
        >>> wide(torch.zeros(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def held(module: nn.Module, name: str, start: Tensor, *, learned: bool) -> None:
    """Keep a copy of a tensor in a module: as a parameter if learned, else as a buffer.

    Example:
        >>> law = nn.Module()
        >>> held(law, "mean", torch.zeros(2), learned=False)
        >>> list(law.state_dict())
        ['mean']
    """
    start = start.detach().to(torch.get_default_dtype()).clone()
    if learned:
        module.register_parameter(name, nn.Parameter(start))
    else:
        module.register_buffer(name, start)


def summed(entries: Tensor, event_dim: int) -> Tensor:
    """Sum over the trailing `event_dim` axes; none leaves the entries as they are.

    Example:
        >>> summed(torch.ones(2, 3, 4), 2)
        tensor([12., 12.])
    """
    return entries.flatten(entries.dim() - event_dim).sum(-1) if event_dim else entries


def noise(size: tuple[int, ...], like: Tensor, generator: Generator | None) -> Tensor:
    """Draw standard normal noise in float32 at least, where a tensor lives.

    Example:
        >>> noise((2, 3), torch.zeros(()), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3])
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.randn(size, dtype=dtype, device=like.device, generator=generator)


def normal_log_prob(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return normal log densities, entry by entry.

        -z^2 / 2 - log(2 pi) / 2 - log_scale,    z = (x - mean) exp(-log_scale)

    Example:
        >>> normal_log_prob(torch.zeros(1), torch.zeros(1), torch.zeros(1))
        tensor([-0.9189])
    """
    z = (x - mean) * (-log_scale).exp()
    return -0.5 * (z.square() + math.log(2 * math.pi)) - log_scale
