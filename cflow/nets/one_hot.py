"""Class labels as unit vectors, the form in which networks take them as a context."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cflow.errors import DomainError

__all__ = ["OneHot"]


class OneHot(nn.Module):
    """Turn class labels `(*batch,)` into unit vectors `(*batch, classes)`.

    A label outside 0 .. classes-1 raises torch's `IndexError`.

    Args:
        classes: How many classes.

    Raises:
        DomainError: No classes, or labels that are not integers.

    Example:
        >>> OneHot(3)(torch.tensor([2, 0]))
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        if classes < 1:
            raise DomainError(f"OneHot: classes must be positive, got {classes}")
        self.eye: Tensor
        self.register_buffer("eye", torch.eye(classes), persistent=False)

    def forward(self, labels: Tensor) -> Tensor:
        """Return unit vectors for integer labels."""
        if labels.is_floating_point():
            raise DomainError(f"OneHot: labels must be integers, got {labels.dtype}")
        return functional.embedding(labels, self.eye)
