"""Messages between all particles of a cloud, and the network of them that turns as space turns.

    m_ij = phi(h_i, h_j, e_ij),    h_i <- h_i + psi(h_i, mean_j a(m_ij) m_ij),    w_ij = omega(m_ij)
    x_i <- x_i + mean_j w_ij (x_i - x_j) / sqrt(l^2 + |x_i - x_j|^2)

e_ij are lengths, which no rigid motion changes, so h stays and x turns with the cloud. Everything
is smooth, also where particles coincide: lengths enter squared or under a root that never vanishes.
A particle is its own neighbour, whose message has no direction.
Source: Satorras, Hoogeboom and Welling (2021), E(n) equivariant graph neural networks, arXiv
2102.09844, equations 3 to 6.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from cflow.errors import expect_positive

__all__ = ["EGNN", "Messages"]


class Messages(nn.Module):
    """Pass one round of messages between all pairs.

    Args:
        features: Length of the vector h_i of a particle.
        edges: Length of what is told of a pair, e_ij.
        outputs: Numbers that come out for each pair, w_ij; their last layer starts near zero.

    Raises:
        DomainError: A size is not positive.

    Example:
        >>> h, w = Messages(8, 2, 3)(torch.zeros(7, 4, 8), torch.zeros(7, 4, 4, 2))
        >>> h.shape, w.shape
        (torch.Size([7, 4, 8]), torch.Size([7, 4, 4, 3]))
    """

    def __init__(self, features: int, edges: int, outputs: int) -> None:
        super().__init__()
        expect_positive("Messages", features=features, edges=edges, outputs=outputs)
        # One linear map of (h_i, h_j, e_ij), whose parts are taken where there are fewer of them.
        self.receiver = nn.Linear(features, features)
        self.sender = nn.Linear(features, features, bias=False)
        self.edge = nn.Linear(edges, features, bias=False)
        self.message = nn.Linear(features, features)
        self.gate = nn.Linear(features, 1)
        self.update = nn.Sequential(
            nn.Linear(2 * features, features), nn.SiLU(), nn.Linear(features, features)
        )
        last = nn.Linear(features, outputs, bias=False)
        nn.init.xavier_uniform_(last.weight, gain=1e-3)
        self.weight = nn.Sequential(nn.Linear(features, features), nn.SiLU(), last)

    def forward(self, h: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Return new vectors `(*batch, n, features)` and weights `(*batch, n, n, outputs)`.

        Args:
            h: Vectors of particles, `(*batch, n, features)`.
            edges: What is told of pairs, `(*batch, n, n, edges)`, receiver before sender.
        """
        pair = self.receiver(h)[..., :, None, :] + self.sender(h)[..., None, :, :]
        m = silu(self.message(silu(pair + self.edge(edges))))
        heard = (torch.sigmoid(self.gate(m)) * m).mean(-2)
        return h + self.update(torch.cat([h, heard], -1)), self.weight(m)


class EGNN(nn.Module):
    """Move particles by what all others are, and how far away.

    Args:
        features: Length of the vector of a particle.
        layers: Rounds of messages, each of which moves the particles.
        length: Unit of length: about the distance of neighbours, in the units of the points.

    Raises:
        DomainError: A size or the length is not positive.

    Example:
        >>> h, x = EGNN(8)(torch.zeros(7, 4, 8), torch.randn(7, 4, 3))
        >>> x.shape
        torch.Size([7, 4, 3])
    """

    def __init__(self, features: int, *, layers: int = 4, length: float = 1.0) -> None:
        super().__init__()
        expect_positive("EGNN", features=features, layers=layers, length=length)
        self.length = length
        self.layers = nn.ModuleList(Messages(features, 4, 1) for _ in range(layers))

    def forward(self, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors and points after all rounds, as h and x are.

        Args:
            h: Vectors of particles, `(*batch, n, features)`, of the dtype of the weights.
            x: Points `(*batch, n, dims)`.
        """
        first = None
        for layer in self.layers:
            away = x[..., :, None, :] - x[..., None, :, :]
            square = (away / self.length).square().sum(-1, keepdim=True)
            seen = torch.cat([(1 + square).sqrt() - 1, torch.log1p(square)], -1).to(h.dtype)
            first = seen if first is None else first
            h, weight = layer(h, torch.cat([seen, first], -1))
            x = x + (weight.to(x.dtype) * away / (1 + square).sqrt()).mean(-2)
        return h, x
