"""DiT: a flow of images along the velocity of a transformer over patches, for flow matching.

noise --ODE--> images, best scaled to [-1, 1] (--scale, floor--> 0 .. levels - 1)

Source: Ma et al. (2024), SiT: exploring flow and diffusion-based generative models with scalable
interpolant transformers, arXiv 2401.08740; the network: Peebles and Xie (2023), arXiv 2212.09748.
"""

from collections.abc import Sequence

from cflow.field import DiTField, Divergence
from cflow.flow import Flow
from cflow.ode import Adjoint, Solver
from cflow.recipes.image_field import (
    context_sizes,
    field_shape,
    image_field_flow,
    span_time,
)
from cflow.recipes.recipe import recipe

__all__ = ["dit"]


@recipe
def dit(
    shape: Sequence[int],
    classes: int = 0,
    *,
    context_shape: Sequence[int] | None = None,
    patch: int = 2,
    width: int = 384,
    layers: int = 12,
    heads: int = 6,
    expansion: int = 4,
    dropout: float = 0.0,
    time_scale: float = 1000.0,
    levels: int | None = None,
    solver: Solver | None = None,
    divergence: Divergence | None = None,
    adjoint: Adjoint | None = None,
    average: bool = False,
) -> Flow:
    """Build a flow of images along the velocity of a DiT; it starts as the identity.

    The transport, its training, `levels` and guidance are as in `unet`.

    Args:
        shape: Shape of one image, (channels, height, width), or (height, width) for grey ones.
        classes: Number of classes; the context is then an integer label `(*batch,)`, and `classes`
            itself, or a negative label, means none. 0 for no classes.
        context_shape: Shape of any other context: (n,) for vectors, which steer all blocks, or
            (tokens, n) for sequences, which attention reads; zeros mean none.
        patch: Side of a patch in pixels; it divides height and width.
        width: Length of the hidden vectors, a multiple of 4.
        layers: Number of blocks.
        heads: Attention heads; they share the width.
        expansion: Hidden width of the MLPs in units of `width`.
        dropout: Dropout probability of the field, in training.
        time_scale: Largest angular frequency at which the network sees time, in radians.
        levels: Number of grey levels of integer images, or None for floating images.
        solver: How the ODE is integrated; `Dopri5()` by default. Fixed steps must be short near
            t = 1, `RK4(48, grid=EDMGrid())`: even ones make likelihoods of grey levels too high.
        divergence: How the log-determinant is computed; `Hutchinson()` by default.
        adjoint: How gradients pass through the solve; `Direct()` by default.
        average: Learn the average velocity between two times instead, by `mean_flow`, and leap
            along it; `time_scale` should then be small, 30 say, and the solver is `Euler(leaps)`.

    Raises:
        DomainError: The shape is not that of images, the patch does not divide it, a size is out of
            range, the heads do not divide the width, or both kinds of context are asked for.

    Example:
        >>> import torch
        >>> from cflow.ode import Euler
        >>> flow = dit((3, 8, 8), context_shape=(7, 5), width=16, layers=1, heads=2)
        >>> text = torch.randn(2, 7, 5)
        >>> flow.with_solver(Euler(2)).sample((), text).shape
        torch.Size([2, 3, 8, 8])
    """
    full = field_shape("dit", shape)
    context, tokens = context_sizes("dit", classes, context_shape)
    field = DiTField(
        full,
        classes,
        context=context,
        tokens=tokens,
        patch=patch,
        width=width,
        layers=layers,
        heads=heads,
        expansion=expansion,
        dropout=dropout,
        time_scale=time_scale,
        time=span_time(128, time_scale) if average else None,
    )
    given = () if classes else context_shape
    flow = image_field_flow(field, shape, context_shape=given, levels=levels, average=average)
    return flow.with_solver(solver, divergence=divergence, adjoint=adjoint)
