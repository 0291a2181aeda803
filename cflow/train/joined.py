"""Several optimisers as one: matrices by one rule, everything else by another.

Muon, for example, steps matrices along the nearest orthogonal one, and leaves tables, biases and
norms to AdamW.
Source: Jordan et al. (2024), Muon: an optimizer for hidden layers in neural networks; Liu et al.
(2025), Muon is scalable for LLM training, arXiv 2502.16982.
"""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from cflow.errors import DomainError

__all__ = ["JoinedOptimizer", "muon"]


class JoinedOptimizer(Optimizer):
    """Step several optimisers together; their groups keep rates and options of their own.

    Args:
        *parts: Optimisers of disjoint parameters.

    Raises:
        DomainError: There is no part, or two share a parameter.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> sgd = torch.optim.SGD([layer.weight], lr=0.1)
        >>> len(JoinedOptimizer(sgd, AdamW([layer.bias])).param_groups)
        2
    """

    def __init__(self, *parts: Optimizer) -> None:
        groups = [group for part in parts for group in part.param_groups]
        owned = [id(p) for group in groups for p in group["params"]]
        if not parts or len(set(owned)) < len(owned):
            raise DomainError(
                "JoinedOptimizer: needs one optimiser at least, and each parameter in one of them "
                f"only, got {len(parts)} optimisers of {len(owned)} parameters"
            )
        self.parts = parts
        super().__init__([p for group in groups for p in group["params"]], {})
        self.param_groups = groups  # the parts' own, so that schedules reach them

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step with every part; a closure is called once, before them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def muon(model: nn.Module, *, lr: float = 0.02, rest: float = 3e-3) -> JoinedOptimizer:
    """Step the matrices inside a transformer's blocks by Muon, all else by AdamW.

    Args:
        model: The model; matrices are the weights of its `nn.Linear` layers, but for those that
            start or end it (`table`, `first`, `last`).
        lr: Learning rate of matrices, in units of the root mean square of a step.
        rest: Learning rate of everything else.

    Returns:
        One optimiser, for `Trainer(optimizer=...)`.

    Raises:
        DomainError: The model has no such matrix.

    Example:
        >>> from cflow.nets import TokenTransformer
        >>> net = TokenTransformer(4, 3, 3, width=8, layers=1, heads=2)
        >>> [type(part).__name__ for part in muon(net).parts]
        ['Muon', 'AdamW']
    """
    ends = {"table", "first", "last"}
    matrices = [
        part.weight
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and name.rsplit(".", 1)[-1] not in ends
    ]
    if not matrices:
        raise DomainError("muon: the model has no matrix inside; take AdamW alone")
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    return JoinedOptimizer(
        Muon(matrices, lr=lr, momentum=0.95, weight_decay=0.01),
        AdamW(others, lr=rest, betas=(0.9, 0.98), weight_decay=0.0),
    )
