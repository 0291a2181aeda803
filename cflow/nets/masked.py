"""A perceptron whose outputs read only the inputs that they are allowed to read.

Every hidden unit carries a set of inputs: it reads those inputs, or units whose sets lie inside its
own, and output i reads the units whose sets lie inside row i of the adjacency. With all rows of the
adjacency among the sets of each layer the product of the layers' masks is the adjacency, no link
lost and none too many; for an order of the features the sets are nested and this is MADE.

A strict inequality of degrees belongs between units and outputs only. Between hidden layers it
loses links: with D = 2 or 3 and two hidden layers all of them.

Source: Germain, Gregor, Murray and Larochelle (2015), MADE, arXiv 1502.03509, equations 12 to 14;
for a general adjacency Wehenkel and Louppe (2021), Graphical normalizing flows, arXiv 2006.02548.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cflow.errors import DomainError

__all__ = ["MaskedLinear", "MaskedMLP", "adjacency_of_order", "adjacency_of_passes", "depths"]


class MaskedMLP(nn.Module):
    """Map features (and a context) to some parameters for each, along the links of a graph.

    Units are sorted by how deep into the graph they see, which `Incremental` inversion builds on.
    The context reaches every layer, as in `MLP`, and every output.

    Args:
        features: Length D of the last axis of x, or the adjacency itself: true at (i, j) where
            output i reads input j, `(outputs, inputs)`. A number means the order given by `order`.
        parameters: Numbers for each output.
        order: Position of each feature, a permutation of 0..D-1: feature i reads those at lower
            positions. None for the order in which they stand.
        context: Length of the last axis of the context; 0 for none.
        hidden_features: Widths of the hidden layers.
        activation: A function of one number, applied entry by entry.
        residual: Add h_k to h_(k+1) where their widths agree.
        dropout: Probability with which a hidden unit is silenced in training.
        zero_last: Start with an output of zero.

    Raises:
        DomainError: A size is not positive, `order` is no permutation, or a layer has too few units
            to carry every link; those that would be lost are named.

    Example:
        >>> net = MaskedMLP(3, 2, hidden_features=(8, 8))
        >>> theta = net(torch.zeros(5, 3))
        >>> theta.unflatten(-1, (3, 2)).shape
        torch.Size([5, 3, 2])
        >>> net.adjacency.int().tolist()
        [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    """

    def __init__(
        self,
        features: int | Tensor,
        parameters: int = 1,
        *,
        order: Sequence[int] | Tensor | None = None,
        context: int = 0,
        hidden_features: Sequence[int] = (64, 64),
        activation: Callable[[Tensor], Tensor] = nn.functional.silu,
        residual: bool = False,
        dropout: float = 0.0,
        zero_last: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(features, int):
            adjacency = adjacency_of_order(range(features) if order is None else order)
        else:
            adjacency = features
        if adjacency.dim() != 2 or adjacency.dtype != torch.bool or not adjacency.numel():
            raise DomainError(
                "MaskedMLP: an adjacency must be a matrix of flags (outputs, inputs), got "
                f"{adjacency.dtype} {tuple(adjacency.shape)}"
            )
        if not isinstance(features, int) and order is not None:
            raise DomainError("MaskedMLP: an adjacency has its own order, order must be None")
        if isinstance(features, int) and len(adjacency) != features:
            raise DomainError(
                f"MaskedMLP: order must name {features} features, got {len(adjacency)}"
            )
        if min((parameters, *hidden_features)) < 1 or context < 0:
            raise DomainError(
                f"MaskedMLP: sizes must be positive, got parameters={parameters}, "
                f"context={context}, hidden_features={tuple(hidden_features)}"
            )
        self.parameters_each = parameters
        self.context = context
        self.activation = activation
        self.residual = residual
        self.dropout = nn.Dropout(dropout)
        outputs, inputs = adjacency.shape
        widths = [inputs, *hidden_features]
        self.hidden = nn.ModuleList(
            MaskedLinear(a + context, b) for a, b in zip(widths, hidden_features, strict=False)
        )
        self.last = MaskedLinear(widths[-1] + context, outputs * parameters)
        self.adjacency: Tensor
        self.register_buffer("adjacency", adjacency.clone())
        self._mask()
        self.register_load_state_dict_post_hook(_mask_again)
        if zero_last:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return `(*batch, outputs * parameters)`; the parameters of one output stand together."""
        return self._run(x, context, self.dropout)

    def steady(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the same without dropout, in training too: what an inversion can rely on."""
        return self._run(x, context, None)

    def layers(self) -> "list[MaskedLinear]":
        """Return the hidden layers and the last one."""
        return [*self.hidden, self.last]  # type: ignore[list-item]

    def joins(self, layer: int) -> bool:
        """Say whether hidden layer number `layer` adds its input to its output."""
        here = self.layers()[layer]
        return self.residual and layer > 0 and here.in_features - self.context == here.out_features

    def _run(self, x: Tensor, context: Tensor | None, dropout: nn.Module | None) -> Tensor:
        dtype = self.last.weight.dtype  # a net of low precision takes points of any
        h = x.to(dtype)
        context = None if context is None else context.to(dtype)
        for number, layer in enumerate(self.hidden):
            new = _activated(self.activation, layer(_join(h, context)))
            new = new if dropout is None else dropout(new)
            h = h + new if self.joins(number) else new
        return self.last(_join(h, context))

    def _mask(self) -> None:
        """Give every layer its mask, and every unit its level."""
        adjacency = self.adjacency.cpu()
        depth = _depths(adjacency)
        sets = torch.unique(adjacency, dim=0)
        if not self.context and len(sets) > 1:
            sets = sets[sets.any(1)]  # units that read nothing are of no use
        level = sets.sum(1) if depth is None else torch.where(sets, depth + 1, 0).amax(1)
        sets, level = sets[level.argsort(stable=True)], level.sort().values
        # Numbers, not tensors: they decide about steps. Empty if this is no graph of features.
        self.depth: tuple[int, ...] = () if depth is None else tuple(depth.tolist())
        self.levels: list[Tensor] = []
        below, reach = torch.eye(adjacency.shape[1]).bool(), torch.eye(adjacency.shape[1])
        for layer in self.layers():
            if layer is self.last:
                above = adjacency.repeat_interleave(self.parameters_each, dim=0)
            else:
                which = torch.arange(layer.out_features) * len(sets) // layer.out_features
                above = sets[which]
                self.levels.append(level[which])
            mask = (below.double() @ (~above).double().T == 0).T
            layer.set_mask(mask, self.context)
            reach = (mask.double() @ reach.double() > 0).double()
            below = above
        self._check(adjacency, reach.bool()[:: self.parameters_each], len(sets))

    def _check(self, wanted: Tensor, found: Tensor, sets: int) -> None:
        lost, extra = torch.nonzero(wanted & ~found), torch.nonzero(found & ~wanted)
        if not len(lost) and not len(extra):
            return
        named = ", ".join(f"{i} <- {j}" for i, j in [*lost.tolist(), *extra.tolist()][:6])
        raise DomainError(
            f"MaskedMLP: {len(lost)} links would be lost and {len(extra)} forbidden ones made "
            f"(output <- input: {named}, ...); {sets} different sets of inputs need as many units "
            f"in each hidden layer, got {tuple(layer.out_features for layer in self.layers()[:-1])}"
        )


class MaskedLinear(nn.Module):
    """A linear layer with a fixed pattern of links, y = (W * mask) x + b.

    Args:
        in_features: Length of x.
        out_features: Length of y.

    Example:
        >>> layer = MaskedLinear(2, 1)
        >>> layer.set_mask(torch.tensor([[True, False]]))
        >>> (layer.masked()[0, 1] == 0).item()
        True
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        linear = nn.Linear(in_features, out_features)  # for its initialisation
        self.in_features, self.out_features = in_features, out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.mask: Tensor
        self.register_buffer("mask", torch.ones_like(linear.weight), persistent=False)

    def set_mask(self, mask: Tensor, free: int = 0) -> None:
        """Set which outputs read which inputs, `(out, in - free)`; the last `free` reach all."""
        mask = nn.functional.pad(mask, (0, free), value=True)
        self.mask = mask.to(device=self.weight.device, dtype=self.weight.dtype)

    def masked(self) -> Tensor:
        """Return the weights that are in use."""
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        """Map `(*batch, in_features)` to `(*batch, out_features)`."""
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


def adjacency_of_order(order: Sequence[int] | Tensor) -> Tensor:
    """Return who reads whom if feature i reads all features at positions below `order[i]`.

    Raises:
        DomainError: `order` is no permutation of 0..D-1.

    Example:
        >>> adjacency_of_order([1, 0]).int().tolist()
        [[0, 1], [0, 0]]
    """
    position = torch.as_tensor(list(order))
    if sorted(position.tolist()) != list(range(len(position))) or not len(position):
        raise DomainError(
            f"adjacency_of_order: order must hold each of 0..D-1 once, got {position.tolist()}"
        )
    return position[:, None] > position


def adjacency_of_passes(
    features: int, passes: int, *, order: Sequence[int] | Tensor | None = None
) -> Tensor:
    """Return who reads whom if an inversion shall need no more than so many passes.

    The features, in their order, fall into `passes` groups as even as can be; each reads all
    earlier groups. Two passes make a coupling layer, as many as features the full order.

    Example:
        >>> adjacency_of_passes(4, 2).int().tolist()
        [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    """
    if not 1 <= passes <= features:
        raise DomainError(
            f"adjacency_of_passes: passes must lie between 1 and {features}, got {passes}"
        )
    adjacency_of_order(range(features) if order is None else order)
    position = torch.arange(features) if order is None else torch.as_tensor(list(order))
    group = position * passes // features
    return group[:, None] > group


def depths(adjacency: Tensor) -> Tensor:
    """Return for each feature the length of the longest chain of features that leads to it.

    Raises:
        DomainError: The adjacency is not square, or features read each other in a circle.

    Example:
        >>> depths(adjacency_of_order([2, 0, 1])).tolist()
        [2, 0, 1]
    """
    depth = _depths(adjacency)
    if depth is None:
        raise DomainError(
            f"depths: the adjacency {tuple(adjacency.shape)} must be square and without circles"
        )
    return depth


def _depths(adjacency: Tensor) -> Tensor | None:
    rows, columns = adjacency.shape
    if rows != columns:
        return None
    waiting, depth = adjacency.sum(1), torch.full((rows,), -1)
    for level in range(rows):
        ready = (waiting == 0) & (depth < 0)
        if not bool(ready.any()):
            break
        depth[ready] = level
        waiting = waiting - adjacency[:, ready].sum(1)
    return depth if bool((depth >= 0).all()) else None


def _activated(activation: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Apply it to a tensor of ours: in place where no gradient needs the input."""
    return torch.relu_(z) if activation is nn.functional.relu else activation(z)


def _join(h: Tensor, context: Tensor | None) -> Tensor:
    return h if context is None else torch.cat([h, context], dim=-1)


def _mask_again(net: nn.Module, incompatible: object) -> None:
    """Follow an adjacency that was loaded."""
    if isinstance(net, MaskedMLP):
        net._mask()
