"""Points that have to lie on the manifold of a flow: refused with how far off, or projected."""

from torch import Tensor

from cflow.base import ManifoldUniform
from cflow.errors import DomainError
from cflow.flow import Flow
from cflow.jump import JumpFlow
from cflow.manifold import expect_on

__all__ = ["brought", "on_manifold"]


def on_manifold(flow: Flow) -> bool:
    """Say whether points of the flow, or parts of them, live on a manifold.

    Example:
        >>> from cflow import recipes
        >>> on_manifold(recipes.sphere_cnf()), on_manifold(recipes.cnf(3))
        (True, False)
    """
    return any(isinstance(law, ManifoldUniform) for law in flow.base.modules())


def brought(where: str, flow: Flow | JumpFlow, x: Tensor, *, project: bool) -> Tensor:
    """Return data on the manifold of the flow, which starts from its uniform law if it has one.

    Args:
        where: The command, for errors.
        flow: What is asked about them.
        x: Points `(n, *event)`.
        project: Bring points that lie off the manifold to the nearest of it.

    Raises:
        DomainError: Points lie off the manifold, or are to be projected where there is none.
    """
    if not isinstance(flow.base, ManifoldUniform):
        if project:
            raise DomainError(
                f"{where}: --project brings points to the manifold of a flow, and this flow has "
                "none; leave it out"
            )
        return x
    space = flow.base.manifold
    if project:
        return space.projx(x)
    expect_on(where, "the data (or ask for it by --project)", space, x)
    return x
