"""UNet: a flow of images along the velocity of a UNet, for flow matching.

noise --ODE--> images, best scaled to [-1, 1] (--scale, floor--> 0 .. levels - 1)

Source: Lipman et al. (2023), Flow matching for generative modeling, arXiv 2210.02747, section 6;
the network: Dhariwal and Nichol (2021), arXiv 2105.05233.
"""

from collections.abc import Sequence

from cflow.field import Divergence, UNetField
from cflow.flow import Flow
from cflow.ode import Adjoint, Solver
from cflow.recipes.image_field import (
    context_sizes,
    field_shape,
    image_field_flow,
    span_time,
)
from cflow.recipes.recipe import recipe

__all__ = ["unet"]


@recipe
def unet(
    shape: Sequence[int],
    classes: int = 0,
    *,
    context_shape: Sequence[int] | None = None,
    width: int = 64,
    multipliers: Sequence[int] = (1, 2, 2),
    blocks: int = 2,
    attention: Sequence[int] = (1,),
    heads: int = 4,
    dropout: float = 0.0,
    time_scale: float = 1000.0,
    levels: int | None = None,
    solver: Solver | None = None,
    divergence: Divergence | None = None,
    adjoint: Adjoint | None = None,
    average: bool = False,
) -> Flow:
    """Build a flow of images along the velocity of a UNet; it starts as the identity.

    The transport is the ODE alone, or, for grey images and for `levels`, a chain that the ODE
    begins. Train its field by `matching(field, ...)` on images in [-1, 1]; those of a chain are
    `flow.transport[1:].pull(State(images)).x`, dequantised anew at each call. With `levels`,
    `log_prob` is the uniform dequantisation bound in nats of the integers, from which
    `metrics.bits_per_dim` follows. Hide contexts in training by `field.null` for guidance.

    Args:
        shape: Shape of one image, (channels, height, width), or (height, width) for grey ones.
        classes: Number of classes; the context is then an integer label `(*batch,)`, and `classes`
            itself, or a negative label, means none. 0 for no classes.
        context_shape: Shape of any other context: (n,) for vectors, which steer all blocks, or
            (tokens, n) for sequences, which attention reads; zeros mean none.
        width: Channels at full resolution.
        multipliers: Channels of each resolution in units of `width`, the full one first.
        blocks: Residual blocks of each resolution.
        attention: Resolutions that attend, 0 the full one; the middle always does.
        heads: Attention heads; they share the channels.
        dropout: Dropout probability of the field, in training.
        time_scale: Largest angular frequency at which the network sees time, in radians; with a
            smaller one the field is smoother, and adaptive solves are cheaper.
        levels: Number of grey levels of integer images, or None for floating images.
        solver: How the ODE is integrated; `Dopri5()` by default. Fixed steps must be short near
            t = 1, `RK4(48, grid=EDMGrid())`: even ones make likelihoods of grey levels too high.
        divergence: How the log-determinant is computed; `Hutchinson()` by default.
        adjoint: How gradients pass through the solve; `Direct()` by default.
        average: Learn the average velocity between two times instead, by `mean_flow`, and leap
            along it; `time_scale` should then be small, 30 say, and the solver is `Euler(leaps)`.

    Raises:
        DomainError: The shape is not that of images, a size is out of range, the heads do not
            divide the channels, or both kinds of context are asked for.

    Example:
        >>> import torch
        >>> from cflow.matching import IndependentCoupling, LinearPath, matching
        >>> from cflow.ode import Euler
        >>> from cflow.state import State
        >>> flow = unet((4, 4), 10, width=8, blocks=1, levels=17, solver=Euler(2))
        >>> images, labels = torch.randint(17, (5, 4, 4)), torch.randint(10, (5,))
        >>> x1 = flow.transport[1:].pull(State(images)).x  # (5, 1, 4, 4), in [-1, 1]
        >>> field = flow.transport[0].field
        >>> matching(field, LinearPath(), IndependentCoupling(), x1, context=labels).shape
        torch.Size([5])
        >>> flow.log_prob(images, labels).shape
        torch.Size([5])
    """
    full = field_shape("unet", shape)
    context, tokens = context_sizes("unet", classes, context_shape)
    field = UNetField(
        full,
        classes,
        context=context,
        tokens=tokens,
        width=width,
        multipliers=multipliers,
        blocks=blocks,
        attention=attention,
        heads=heads,
        dropout=dropout,
        time_scale=time_scale,
        time=span_time(max(1, width // 2), time_scale) if average else None,
    )
    given = () if classes else context_shape
    flow = image_field_flow(field, shape, context_shape=given, levels=levels, average=average)
    return flow.with_solver(solver, divergence=divergence, adjoint=adjoint)
