"""The memory that a call takes, counted exactly."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["peak_bytes"]


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the most bytes of tensors, made during a call, that were alive at one time.

    Counts the storages that operations return, on any device, until they are freed; tensors that
    were there before are not counted. The count is exact and the same on every machine, so that
    claims about memory can be tested.

    Args:
        call: What to run, backward pass included if that is to be measured.

    Example:
        >>> peak_bytes(lambda: torch.zeros(1000, dtype=torch.float64).sum())
        8008
    """
    with _Ledger() as ledger:
        call()
    return ledger.peak


class _Ledger(TorchDispatchMode):
    """Watch storages come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        before = {id(s) for s in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            key = storage._cdata
            if id(storage) in before or key in self._known:
                continue
            self._known.add(key)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key, storage.nbytes())
        return result

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _storages(tree: Any) -> list[torch.UntypedStorage]:  # noqa: ANN401
    return [x.untyped_storage() for x in tree_leaves(tree) if isinstance(x, Tensor)]
