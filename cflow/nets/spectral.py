"""Linear maps whose Lipschitz constant never exceeds a coefficient, whatever their weights are.

    W_used = W min(1, c / bound(W)),    |W| <= bound(W) <= (1 + tolerance) |W|

The bound is computed from the weights whenever they are used, so it holds after every optimiser
step, in training and evaluation alike, with no state to update. Power iteration, the usual choice,
approaches |W| from below and needs a stored vector; Gram iteration squares G = W'W a fixed number
of times and approaches from above: |W| <= |G^(2^(k-1))|_F^(1/2^k) <= n^(1/2^(k+1)) |W|.

Orders p other than 2 use the theorem of Riesz and Thorin, |W|_p <= |W|_1^s |W|_2^(1-s) with
1/p = s + (1-s)/2, and its mirror image beyond 2; both are equalities at p = 1, 2 and infinity. The
norm of a convolution is bounded over all frequencies, hence for images of any size.
Source: Delattre et al. (2023), Efficient bound of Lipschitz constant for convolutional layers by
Gram iteration, arXiv 2305.16173; Ehlich and Zeller (1964), Schwankung von Polynomen zwischen
Gitterpunkten, Mathematische Zeitschrift 86, for the grid of frequencies; Chen et al. (2019),
Residual flows for invertible generative modeling, arXiv 1906.02735, appendix D, for norms of
learned order.
"""

import math

import torch
from torch import Tensor, nn

from cflow.errors import DomainError, ShapeError, expect_positive

__all__ = ["SpectralConv2d", "SpectralLinear", "induced_bound", "spectral_bound"]


def spectral_bound(matrices: Tensor, *, tolerance: float = 0.01) -> Tensor:
    """Return an upper bound of the spectral norm, at most 1 + tolerance above it; differentiable.

    Args:
        matrices: `(*batch, rows, columns)`.
        tolerance: Largest relative excess; halving it costs one more product of matrices.

    Returns:
        One bound for each matrix, `(*batch,)`.

    References:
        Delattre et al. (2023), arXiv 2305.16173, theorem 1 and algorithm 1.

    Example:
        >>> spectral_bound(torch.diag(torch.tensor([3.0, 2.0])))
        tensor(3.0000)
    """
    expect_positive("spectral_bound", tolerance=tolerance)
    tiny = torch.finfo(matrices.dtype).tiny
    size = min(matrices.shape[-2:])
    steps = max(1, math.ceil(math.log2(max(1.0, math.log(size) / math.log1p(tolerance))) - 1))
    scale = (matrices.square().sum((-2, -1), keepdim=True) + tiny).sqrt()
    unit = matrices / scale
    gram = unit @ unit.mT if matrices.shape[-2] == size else unit.mT @ unit
    log_norm = torch.zeros_like(scale)
    for step in range(steps):
        gram = gram if step == 0 else gram @ gram.mT
        norm = (gram.square().sum((-2, -1), keepdim=True) + tiny).sqrt()
        gram = gram / norm  # of norm 1, so that no power overflows
        log_norm = 2 * log_norm + norm.log()
    return (scale * (log_norm / 2**steps).exp())[..., 0, 0]


def induced_bound(
    matrix: Tensor, inverse_order: Tensor | float, *, tolerance: float = 0.01
) -> Tensor:
    """Return an upper bound of the norm of a matrix as a map from p-norm to p-norm; differentiable.

    Args:
        matrix: `(rows, columns)`.
        inverse_order: 1 / p in [0, 1]; 0 for the maximum norm.
        tolerance: Relative excess at p = 2.

    References:
        Chen et al. (2019), arXiv 1906.02735, appendix D; the bound is that of Riesz and Thorin.

    Example:
        >>> induced_bound(torch.tensor([[1.0, -2.0], [0.0, 3.0]]), 0.0)  # the largest row
        tensor(3.)
    """
    columns, rows = matrix.abs().sum(0).amax(), matrix.abs().sum(1).amax()
    share = 2 * torch.as_tensor(inverse_order, dtype=matrix.dtype, device=matrix.device) - 1
    tiny = torch.finfo(matrix.dtype).tiny
    corner = torch.where(share > 0, columns, rows).clamp(min=tiny).log()
    middle = spectral_bound(matrix, tolerance=tolerance).clamp(min=tiny).log()
    return (share.abs() * corner + (1 - share.abs()) * middle).exp()


class SpectralLinear(nn.Module):
    """A linear map x W' + b with |W| at most `coefficient`, in the norm of order p on both sides.

    The stored weight is free; the one in use is `bounded_weight()`, in float32 at least.

    Args:
        features: Length of the last axis of x.
        outputs: Length of the last axis of the result.
        coefficient: The bound, for any positive number.
        tolerance: How far below the coefficient a spectral norm may end, relatively.

    Raises:
        DomainError: Sizes below 1, a coefficient or tolerance that is not positive.

    Example:
        >>> layer = SpectralLinear(3, 4, coefficient=0.5)
        >>> layer.weight.data.mul_(100.0).shape, layer.certificate() <= 0.5
        (torch.Size([4, 3]), True)
    """

    def __init__(
        self, features: int, outputs: int, *, coefficient: float, tolerance: float = 0.01
    ) -> None:
        super().__init__()
        _expect_sizes("SpectralLinear", features, outputs)
        expect_positive("SpectralLinear", coefficient=coefficient, tolerance=tolerance)
        start = nn.Linear(features, outputs)
        self.weight, self.bias = start.weight, start.bias
        self.coefficient, self.tolerance = coefficient, tolerance

    def bounded_weight(self, inverse_order: Tensor | float = 0.5) -> Tensor:
        """Return the weight in use: the stored one, shrunk where it is too large."""
        weight = _wide(self.weight)
        if isinstance(inverse_order, float) and inverse_order == 0.5:
            bound = spectral_bound(weight, tolerance=self.tolerance)
        else:
            bound = induced_bound(weight, inverse_order, tolerance=self.tolerance)
        return _shrink(weight, bound, self.coefficient)

    def certificate(self, inverse_order: Tensor | float = 0.5) -> float:
        """Return the norm of the weight in use, or its bound for p besides 1, 2 and infinity."""
        with torch.no_grad():
            weight = self.bounded_weight(inverse_order).double()
            share = 2 * float(inverse_order) - 1
            corner = weight.abs().sum(0 if share > 0 else 1).amax()
            middle = torch.linalg.matrix_norm(weight, 2)
            return float(corner ** abs(share) * middle ** (1 - abs(share)))

    def forward(self, x: Tensor) -> Tensor:
        """Return `(*batch, outputs)` for x `(*batch, features)`."""
        weight = self.bounded_weight()
        return nn.functional.linear(x.to(weight.dtype), weight, self.bias.to(weight.dtype))


class SpectralConv2d(nn.Module):
    """A convolution with zero padding that keeps the image's size, of norm at most `coefficient`.

    With K(w) the matrix of the kernel at frequency w, the norm on images of any size is at most
    max |K(w)|, which a grid of N x N frequencies gives up to a factor 1 / cos(pi (k - 1) / 2N)^2
    for kernels of k x k.

    Args:
        channels: Channels of the image.
        outputs: Channels of the result.
        kernel: Side of the kernel, odd.
        coefficient: The bound, for any positive number.
        tolerance: How far above the norm its bound may lie, relatively; sets the number of
            frequencies.

    Raises:
        DomainError: Sizes below 1, an even kernel, a coefficient or tolerance not positive.

    Example:
        >>> SpectralConv2d(3, 8, kernel=3, coefficient=0.9)(torch.zeros(5, 3, 4, 4)).shape
        torch.Size([5, 8, 4, 4])
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        kernel: int,
        coefficient: float,
        tolerance: float = 0.05,
    ) -> None:
        super().__init__()
        _expect_sizes("SpectralConv2d", channels, outputs)
        expect_positive("SpectralConv2d", coefficient=coefficient, tolerance=tolerance)
        if kernel < 1 or kernel % 2 == 0:
            raise DomainError(f"SpectralConv2d: kernel must be odd and positive, got {kernel}")
        start = nn.Conv2d(channels, outputs, kernel)
        self.weight = start.weight
        self.bias = start.get_parameter("bias")
        self.coefficient, self.tolerance = coefficient, tolerance

    def bounded_weight(self) -> Tensor:
        """Return the kernel in use: the stored one, shrunk where it is too large."""
        weight = _wide(self.weight)
        if weight.shape[-1] == 1:
            bound = spectral_bound(weight[:, :, 0, 0], tolerance=self.tolerance)
        else:
            matrices, excess = _at_frequencies(weight, self.tolerance / 2)
            bound = excess * spectral_bound(matrices, tolerance=self.tolerance / 2).amax()
        return _shrink(weight, bound, self.coefficient)

    def certificate(self) -> float:
        """Return a bound of the norm, on images of any size, within 1% of it."""
        with torch.no_grad():
            weight = self.bounded_weight().double()
            if weight.shape[-1] == 1:
                return float(torch.linalg.matrix_norm(weight[:, :, 0, 0], 2))
            matrices, excess = _at_frequencies(weight, 0.01)
            return excess * float(torch.linalg.matrix_norm(matrices, 2).amax())

    def forward(self, x: Tensor) -> Tensor:
        """Return `(*batch, outputs, height, width)` for x `(*batch, channels, height, width)`."""
        return convolve(x, self.bounded_weight(), self.bias)


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve images with any number of batch axes, padding with zeros to keep their size."""
    if x.dim() < 3 or x.shape[-3] != weight.shape[1]:
        raise ShapeError(
            f"SpectralConv2d: images must end in (channels={weight.shape[1]}, height, width), got "
            f"{tuple(x.shape)}"
        )
    flat = x.reshape(-1, *x.shape[-3:]).to(weight.dtype)
    padding = weight.shape[-1] // 2
    y = nn.functional.conv2d(flat, weight, bias.to(weight.dtype), padding=padding)
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def _at_frequencies(weight: Tensor, tolerance: float) -> tuple[Tensor, float]:
    """Return K(w) = A + iB on a grid, as real [[A, -B], [B, A]] of the same norm, and the excess.

    Frequencies w and -w give conjugate matrices, so half of the grid is enough.
    """
    side = weight.shape[-1]
    degree = (side - 1) / 2
    count = math.ceil(math.pi * degree / math.acos((1 + tolerance) ** -0.5))
    angles = torch.arange(count, dtype=weight.dtype, device=weight.device) * (2 * math.pi / count)
    taps = torch.arange(side, dtype=weight.dtype, device=weight.device) - side // 2
    half = angles[: count // 2 + 1]
    phase = (half[:, None, None, None] * taps[:, None]) + (angles[:, None, None] * taps)
    phase = phase.reshape(-1, side * side)  # (frequencies, taps)
    flat = weight.flatten(2)
    real = torch.einsum("ft,oit->foi", phase.cos(), flat)
    imaginary = torch.einsum("ft,oit->foi", phase.sin(), flat)
    top, bottom = torch.cat([real, -imaginary], -1), torch.cat([imaginary, real], -1)
    return torch.cat([top, bottom], -2), math.cos(math.pi * degree / count) ** -2


def _shrink(weight: Tensor, bound: Tensor, coefficient: float) -> Tensor:
    room = coefficient * (1 - 8 * torch.finfo(weight.dtype).eps)  # for the rounding of the product
    return weight / (bound / room).clamp(min=1.0)


def _wide(weight: Tensor) -> Tensor:
    """Lift low precision to float32: a rounded weight would be beyond its bound."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _expect_sizes(where: str, features: int, outputs: int) -> None:
    if min(features, outputs) < 1:
        raise DomainError(f"{where}: sizes must be positive, got {features} and {outputs}")
