"""What was found for the last few tensors, so that a search is not made twice for the same points.

Tensors count as the same by their values: solvers, paths and derivatives hand over copies, views
and wrapped ones, and a caller may write into what he handed over.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor

from cflow.errors import transformed

__all__ = ["Recent", "readable"]

Found = TypeVar("Found")


class Recent(Generic[Found]):
    """Remember what was found for the last few tensors, by their values.

    What is sought must not depend on derivatives: the search sees the values alone. Nothing is
    remembered inside a traced graph or under `vmap`.

    Args:
        size: How many tensors are remembered.

    Example:
        >>> recent = Recent(2)
        >>> recent(torch.ones(1), lambda x: x + 1), recent(torch.ones(1), lambda x: x + 2)
        (tensor([2.]), tensor([2.]))
    """

    def __init__(self, size: int = 4) -> None:
        self.size = size
        self.kept: tuple[tuple[Tensor, Found], ...] = ()

    def __call__(self, x: Tensor, find: Callable[[Tensor], Found]) -> Found:
        """Return find(x), or what is remembered of it."""
        x = _unwrapped(x)
        if not readable(x):
            return find(x.detach())
        with _outside():
            x = x.detach()
            for key, found in self.kept:
                if key.dtype == x.dtype and key.device == x.device and torch.equal(key, x):
                    return found
            found = find(x)
            self._keep(x, found)
            return found

    def keep(self, x: Tensor, found: Found) -> None:
        """Remember what was found for x, by this object or another one of its kind."""
        x = _unwrapped(x)
        if readable(x):
            with _outside():
                self._keep(x.detach(), found)

    def _keep(self, x: Tensor, found: Found) -> None:
        self.kept = ((x.clone(), found), *self.kept[: self.size - 1])

    def __getstate__(self) -> dict[str, int | tuple[()]]:
        """Forget everything in copies and files."""
        return {"size": self.size, "kept": ()}


def readable(x: Tensor) -> bool:
    """Say whether the values of a tensor can be looked at: not traced, not under `vmap`.

    Example:
        >>> readable(torch.zeros(1)), torch.func.vmap(lambda x: x + readable(x))(torch.zeros(1))
        (True, tensor([0.]))
    """
    if torch.compiler.is_compiling():
        return False
    return not torch._C._functorch.is_batchedtensor(_unwrapped(x))  # type: ignore[attr-defined]


def _unwrapped(x: Tensor) -> Tensor:
    """Return a tensor as it was before derivatives of `torch.func` began to be taken."""
    if torch.compiler.is_compiling():
        return x
    functorch = torch._C._functorch  # type: ignore[attr-defined]
    while functorch.is_gradtrackingtensor(x):
        x = functorch.get_unwrapped(x)
    return x


@contextmanager
def _outside() -> Iterator[None]:
    """Leave all transforms of `torch.func`, which would wrap whatever is computed."""
    if not transformed():
        yield
        return
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    with temporarily_clear_interpreter_stack():
        yield
