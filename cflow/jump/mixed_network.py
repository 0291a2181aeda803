"""A network for tokens and points of atoms, which follows every symmetry of a molecule.

    h_i = e(token_i) + W (waves(t), context),    h', x' = EGNN(h, x)
    logits_i = MLP(h'_i),    v = x' - x, less its mean

Rotations, reflections, shifts and another order of the atoms leave the logits of each atom as they
are, and turn the velocity with the points.
Source: Satorras, Hoogeboom and Welling (2021), E(n) equivariant graph neural networks, arXiv
2102.09844; Hoogeboom et al. (2022), Equivariant diffusion for molecule generation in 3D, arXiv
2203.17003 (elements as features of nodes).
"""

import torch
from torch import Tensor, nn

from cflow.errors import DomainError, ShapeError, expect_positive
from cflow.field import FourierTime, TimeEmbedding
from cflow.nets import EGNN
from cflow.typing import Data, Points

__all__ = ["MixedEGNN"]


class MixedEGNN(nn.Module):
    """Give logits and a velocity of each atom; for a `MixedFlow` from `MeanFreeGaussian`.

    Args:
        states: How many values a token has on the way, `base.states`.
        outputs: Logits for each token, `base.vocabulary`.
        context: Length of a vector that tells of the whole cloud; 0 for none.
        hidden_features: Length of the vector of an atom.
        layers: Rounds of messages.
        length: Unit of length: about the distance of neighbours, in the units of the points.
        time: How the network sees each of the two times; `FourierTime(8)` by default.

    Raises:
        DomainError: A size is out of range; on use, a context where none is expected, or none where
            one is.
        ShapeError: On use, there is not one token for each point.

    Example:
        >>> network = MixedEGNN(5, 4, hidden_features=16, layers=2)
        >>> t, tokens, x = torch.rand(7, 2), torch.randint(5, (7, 9)), torch.randn(7, 9, 3)
        >>> logits, v = network(t, tokens, x)
        >>> logits.shape, bool(v.mean(1).abs().max() < 1e-6)
        (torch.Size([7, 9, 4]), True)
    """

    def __init__(
        self,
        states: int,
        outputs: int,
        context: int = 0,
        *,
        hidden_features: int = 64,
        layers: int = 4,
        length: float = 1.0,
        time: TimeEmbedding | None = None,
    ) -> None:
        super().__init__()
        expect_positive(
            "MixedEGNN", states=states, outputs=outputs, hidden_features=hidden_features
        )
        if context < 0:
            raise DomainError(f"MixedEGNN: context must be 0 or more, got {context}")
        self.context = context
        self.time = FourierTime(8) if time is None else time
        self.table = nn.Embedding(states, hidden_features)
        self.given = nn.Linear(2 * self.time.features + context, hidden_features)
        self.net = EGNN(hidden_features, layers=layers, length=length)
        last = nn.Linear(hidden_features, outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(
            nn.LayerNorm(hidden_features),
            nn.Linear(hidden_features, hidden_features),
            nn.SiLU(),
            last,
        )

    def forward(
        self, t: Tensor, tokens: Data, x: Points, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return logits `(n, atoms, outputs)` and a velocity `(n, atoms, dims)`.

        Args:
            t: Times of tokens and of points, `(n, 2)`.
            tokens: One for each atom, `(n, atoms)`.
            x: Their places `(n, atoms, dims)`.
            context: Vectors `(n, context)`.
        """
        if (context is None) != (self.context == 0):
            got = "none" if context is None else f"one of shape {tuple(context.shape)}"
            wants = f"a context of length {self.context}" if self.context else "none"
            raise DomainError(
                f"MixedEGNN: expected {wants}, got {got}; build the network with context, or "
                "without"
            )
        if tokens.shape != x.shape[:-1]:
            raise ShapeError(
                f"MixedEGNN: needs one token for each point, got tokens {tuple(tokens.shape)} and "
                f"points {tuple(x.shape)}"
            )
        seen = self.time(t).flatten(-2)
        if context is not None:
            seen = torch.cat([seen, context.to(seen.dtype)], -1)
        h = self.table(tokens) + self.given(seen.to(self.given.weight.dtype))[..., None, :]
        centred = x - x.mean(-2, keepdim=True)  # far from the origin, differences lose digits
        h, moved = self.net(h, centred)
        v = moved - centred
        return self.head(h), v - v.mean(-2, keepdim=True)
