"""How a token is drawn from logits: temperature, nucleus, precision.

    p = softmax(logits / temperature),  cut to the likeliest tokens that hold a share top_p

Draws invert the running sum of p at a uniform number, which costs one such number a token, where
the Gumbel trick costs one for every value that a token may take.
Source: Holtzman et al. (2020), The curious case of neural text degeneration, arXiv 1904.09751,
section 3.1 (the nucleus).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.errors import DomainError, expect_positive

__all__ = ["Draw"]


@dataclass(frozen=True)
class Draw:
    """Draw tokens from rows of logits.

    Attributes:
        temperature: Divides the logits; below 1 likely tokens gain.
        top_p: Share of the probability that is kept, the likeliest tokens first; 1 keeps all.
        dtype: Precision of the running sums, `torch.float64` say; by default that of the logits,
            float32 at least. In float32 a token of probability below 1e-7 is never drawn.

    Raises:
        DomainError: An option is out of range.

    Example:
        >>> logits = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]).log()
        >>> Draw()(logits, torch.tensor([0.85, 0.15])).tolist()
        [1, 1]
        >>> Draw(top_p=0.6)(logits, torch.tensor([0.85, 0.15])).tolist()
        [0, 2]
    """

    temperature: float = 1.0
    top_p: float = 1.0
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        expect_positive("Draw", temperature=self.temperature)
        if not 0 < self.top_p <= 1:
            raise DomainError(f"Draw: top_p must lie in (0, 1], got {self.top_p}")
        if self.dtype not in (None, torch.float32, torch.float64):
            raise DomainError(f"Draw: dtype must be float32 or float64, got {self.dtype}")

    def __call__(self, logits: Tensor, u: Tensor) -> Tensor:
        """Return tokens.

        Args:
            logits: Unnormalised log-probabilities `(n, values)`.
            u: Uniform numbers in [0, 1), `(n,)`.

        Returns:
            Integers `(n,)`; never one of probability 0.
        """
        weight = self._weights(logits)
        below = weight.cumsum_(-1)
        reach = u.to(below.dtype)[:, None] * below[:, -1:]
        # an index whose running sum exceeds the mark, and no earlier one does, has mass of its own;
        # u rounded up to 1 would pass the last one
        reach = torch.minimum(reach, below[:, -1:].nextafter(torch.zeros_like(reach)))
        return torch.searchsorted(below, reach, right=True)[:, 0]

    def _weights(self, logits: Tensor) -> Tensor:
        """Return unnormalised probabilities in a tensor of their own."""
        wide = self.dtype or torch.promote_types(logits.dtype, torch.float32)
        weight = logits.to(wide) - logits.amax(-1, keepdim=True).to(wide)
        if self.temperature != 1:
            weight /= self.temperature
        weight.exp_()
        if self.top_p == 1:
            return weight
        ranked, order = weight.sort(-1, descending=True)
        above = ranked.cumsum(-1) - ranked  # what likelier tokens hold
        cut = above >= self.top_p * ranked.sum(-1, keepdim=True)
        return weight.scatter_(-1, order, ranked.masked_fill_(cut, 0.0))
