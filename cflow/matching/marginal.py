"""Averaged ends: the ends of a path as the whole batch expects them at a point.

    E[(x0, x1) | x_i] = sum_k p(k | x_i) E[(x0, x1) | x_i, pair k],    p(k | x) ~ w_k p(x | pair k)

A regression target is noisy because many pairs pass through one point; averaging over the pairs of
the batch takes most of that noise away, and leaves a bias that vanishes as the batch grows (row i
has its own pair always among those that it averages over). Two laws p(x | pair k) are known:

    normal sources, independent of the targets:  N(alpha x1_k, (sigma^2 + noise^2) I)
    any pairs on a path with noise:              N(alpha x1_k + sigma x0_k, noise^2 I)

Source: Xu, Tong and Jaakkola (2023), Stable target field for reduced variance score estimation in
diffusion models, arXiv 2302.00670, equation 5; Tong et al. (2024), arXiv 2302.00482, equation 8.
"""

import torch
from torch import Tensor

from cflow.field import Coefficients, Ends

__all__ = ["ends_over_pairs", "ends_over_targets"]


@torch.no_grad()
def ends_over_targets(
    c: Coefficients,
    x0: Tensor,
    x1: Tensor,
    blur: Tensor | None,
    noise: float,
    prior: Tensor | None,
) -> Ends:
    """Average over the targets of the batch; the sources are standard normal and independent.

    Args:
        c: Coefficients at the time of each point, `(n,)` each.
        x0: Sources `(n, *event)`.
        x1: Targets of the same shape.
        blur: Standard normal noise of the path, of the same shape, where it has any.
        noise: Its scale.
        prior: Logarithms of weights, `(n, n)` or `(n,)` over the targets; minus infinity leaves a
            target out.

    Returns:
        The expected ends at each point `alpha x1 + sigma x0 + noise blur`, `(n, *event)` each.
    """
    shape, x0, x1 = x1.shape, _flat(x0), _flat(x1)
    alpha, sigma = c.alpha[:, None], c.sigma[:, None]
    z, width = x0, sigma
    if blur is not None:
        width = (sigma.square() + noise**2).sqrt()
        z = (sigma * x0 + noise * _flat(blur)) / width
    # A law narrower than this is that of the own pair; the ratio must not blow up its rounding.
    ratio = alpha / width.clamp_min(torch.finfo(x1.dtype).eps ** 0.5)
    # -|x_i - alpha x1_k|^2 / (2 width^2), without what does not depend on k: zero for the own pair.
    along = (z * x1).sum(1, keepdim=True) - z @ x1.T
    share = _shares(-ratio * along - 0.5 * ratio.square() * _squares(x1), prior)
    mean = share @ x1
    back = z + ratio * (x1 - mean)
    return Ends(
        (back if blur is None else sigma / width * back).reshape(shape), mean.reshape(shape)
    )


@torch.no_grad()
def ends_over_pairs(
    c: Coefficients, x0: Tensor, x1: Tensor, blur: Tensor, noise: float, prior: Tensor | None
) -> Ends:
    """Average over the pairs of the batch, whatever coupled them, on a path with noise.

    Arguments and result as for `ends_over_targets`.
    """
    shape, x0, x1, blur = x1.shape, _flat(x0), _flat(x1), _flat(blur)
    alpha, sigma = c.alpha[:, None], c.sigma[:, None]
    mixed = x1 @ x0.T
    own = mixed.diagonal()
    cross = own[:, None] + own - mixed - mixed.T  # (x1_i - x1_k) . (x0_i - x0_k)
    apart = alpha.square() * _squares(x1) + sigma.square() * _squares(x0)
    apart = (apart + 2 * alpha * sigma * cross).clamp_min(0)
    ends = alpha * (blur @ x1.T) + sigma * (blur @ x0.T)
    along = ends.diagonal()[:, None] - ends
    share = _shares(-along / noise - 0.5 * apart / noise**2, prior)
    return Ends((share @ x0).reshape(shape), (share @ x1).reshape(shape))


def _flat(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1)


def _squares(x: Tensor) -> Tensor:
    """Return squared distances, exactly zero between equal points."""
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()


def _shares(logits: Tensor, prior: Tensor | None) -> Tensor:
    return (logits if prior is None else logits + prior).softmax(1)
