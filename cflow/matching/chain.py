"""Multi-marginal chains: which point of each snapshot follows which, through all times.

    pi(x_0, ..., x_T) = pi(x_0, x_1) pi(x_2 | x_1) ... pi(x_T | x_{T-1})

Couplings of neighbouring snapshots are joined where they share a point, which makes a Markov chain.
Source: Villani (2009), Optimal transport: old and new, the gluing lemma of chapter 1; Chen et al.
(2023), Deep momentum multi-marginal Schrodinger bridge, arXiv 2303.01751, for its use; Rohbeck et
al. (2025), Modeling complex system dynamics with flow matching across time and conditions, for
paths through such tuples.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from cflow.errors import (
    DomainError,
    ShapeError,
    expect_finite,
    expect_floating,
    expect_positive,
)
from cflow.matching.batch import noise
from cflow.matching.coupling import Coupling, PairedCoupling, Pairs
from cflow.typing import Points

__all__ = ["along", "chain"]


@torch.no_grad()
def chain(
    coupling: Coupling,
    snapshots: Sequence[Tensor],
    *,
    n: int | None = None,
    contexts: Sequence[Tensor] | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Join couplings of neighbouring snapshots to chains of indices.

    Each snapshot is first brought to n rows, every point floor(n / size) or ceil(n / size) times,
    at random. So a coupling that uses every source and target once keeps the marginal of every
    snapshot, and snapshots of any sizes can be joined. A coupling that draws one source for each
    target keeps the last marginal, and the others on average.

    Args:
        coupling: How neighbouring snapshots are paired.
        snapshots: Points at each time, two times or more, `(m_k, *event)`; sizes may differ.
        n: Number of chains; the size of the largest snapshot by default, so that all are used. With
            fewer, points are drawn without repetition.
        contexts: Conditions of the points of each snapshot, `(m_k, *context)`, for the coupling.
        generator: Source of the randomness.

    Returns:
        Indices `(n, times)`: column k points into snapshot k. Rows are in random order.

    Raises:
        ShapeError: A snapshot is empty, event shapes differ, or contexts do not fit.
        DomainError: There are fewer than two snapshots, points are not finite, or the coupling
            keeps given pairs, weights its pairs, or leaves a target out.
        SolverError: A plan did not converge.

    Example:
        >>> from cflow.matching import OTCoupling
        >>> rising = [torch.tensor([[0.0], [1.0]]), torch.tensor([[1.2], [0.2], [1.1], [0.3]])]
        >>> index = chain(OTCoupling(), rising)
        >>> sorted(index.tolist())
        [[0, 1], [0, 3], [1, 0], [1, 2]]
    """
    _expect_snapshots("chain", snapshots)
    if isinstance(coupling, PairedCoupling):
        raise DomainError(
            "chain: PairedCoupling is the chain of the rows themselves, which shuffling would "
            "part; use torch.arange(n)[:, None].expand(n, times)"
        )
    if contexts is not None and [len(c) for c in contexts] != [len(x) for x in snapshots]:
        raise ShapeError(
            "chain: contexts must be one for each point of each snapshot, numbers "
            f"{[len(x) for x in snapshots]}, got {[len(c) for c in contexts]}"
        )
    n = max(map(len, snapshots)) if n is None else n
    expect_positive("chain", n=n)
    rows = [_balanced(len(x), n, generator, x.device) for x in snapshots]
    places = [torch.arange(n, device=snapshots[-1].device)]  # a chain's row in each snapshot
    for k in reversed(range(len(snapshots) - 1)):
        a, b = rows[k], rows[k + 1]
        own, context = (None, None) if contexts is None else (contexts[k][a], contexts[k + 1][b])
        pairs = coupling(
            snapshots[k][a],
            snapshots[k + 1][b],
            context,
            source_context=own,
            generator=generator,
        )
        places.append(_sources(coupling, pairs, n)[places[-1]])
    return torch.stack([r[p] for r, p in zip(rows, reversed(places), strict=True)], dim=1)


def along(snapshots: Sequence[Tensor], index: Tensor) -> Points:
    """Gather the points along chains.

    Args:
        snapshots: Points at each time, `(m_k, *event)`.
        index: Chains `(n, times)`.

    Returns:
        Points `(n, times, *event)`.

    Raises:
        ShapeError: The index has another number of times, or event shapes differ.

    Example:
        >>> along([torch.zeros(2, 3, 3), torch.ones(4, 3, 3)], torch.tensor([[0, 3]])).shape
        torch.Size([1, 2, 3, 3])
    """
    if index.dim() != 2 or index.shape[1] != len(snapshots):
        raise ShapeError(
            f"along: the index must have one column for each of {len(snapshots)} snapshots, got "
            f"{tuple(index.shape)}"
        )
    _expect_events("along", snapshots)
    return torch.stack([x[i] for x, i in zip(snapshots, index.unbind(1), strict=True)], dim=1)


def _balanced(size: int, n: int, generator: Generator | None, device: torch.device) -> Tensor:
    """Return n of `size` rows in random order, each as often as any other, to within one."""
    times, rest = divmod(n, size)
    extra = noise(torch.randperm, size, generator, device)[:rest]
    rows = torch.cat([torch.arange(size, device=device).repeat(times), extra])
    return rows[noise(torch.randperm, n, generator, device)]


def _sources(coupling: Coupling, pairs: Pairs, n: int) -> Tensor:
    """Return the source of each of n targets."""
    name = type(coupling).__name__
    if pairs.weight is not None:
        raise DomainError(
            f"chain: {name} weights its pairs, which chains cannot carry; use a coupling that "
            "keeps all mass"
        )
    source = pairs.i.new_full((n,), -1)
    source[pairs.j] = pairs.i
    missing = int((source < 0).sum())
    if missing:
        raise DomainError(
            f"chain: {name} left {missing} of {n} targets without a source, so chains break; use a "
            "coupling that pairs every target, with replace=False"
        )
    return source


def _expect_snapshots(where: str, snapshots: Sequence[Tensor]) -> None:
    if len(snapshots) < 2:
        raise DomainError(f"{where}: needs two snapshots or more, got {len(snapshots)}")
    for k, x in enumerate(snapshots):
        if x.dim() < 1 or not len(x):
            raise ShapeError(
                f"{where}: snapshot {k} is empty, shape {tuple(x.shape)}; leave that time out"
            )
        expect_floating(where, x)
        expect_finite(where, f"snapshot {k}", x)
    _expect_events(where, snapshots)


def _expect_events(where: str, snapshots: Sequence[Tensor]) -> None:
    for k, x in enumerate(snapshots):
        if x.shape[1:] != snapshots[0].shape[1:]:
            raise ShapeError(
                f"{where}: all snapshots need one event shape, got {tuple(snapshots[0].shape[1:])} "
                f"in snapshot 0 and {tuple(x.shape[1:])} in snapshot {k}"
            )
