"""A flow of images along a field: noise of an image's shape, an ODE, and the way to the data.

noise (channels, height, width) --ODE or leaps--> [-1, 1] (--drop channel, scale, floor--> levels)
"""

from collections.abc import Sequence

from cflow.base import Gaussian
from cflow.errors import DomainError
from cflow.field import Field, Hutchinson, NetworkFlowMap, SinusoidalTime, SpanTime, TimeEmbedding
from cflow.flow import Flow
from cflow.manifold import Euclidean
from cflow.transport import ODE, Affine, Chain, Dequantize, Leap, Reshape, Transport

__all__ = ["context_sizes", "field_shape", "image_field_flow", "span_time"]


def field_shape(where: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Return (channels, height, width), with one channel for grey images (height, width).

    Raises:
        DomainError: The shape is neither.

    Example:
        >>> field_shape("unet", (28, 28))
        (1, 28, 28)
    """
    full = (1, *shape) if len(shape) == 2 else tuple(shape)
    if len(full) != 3 or min(full) < 1:
        raise DomainError(
            f"{where}: shape must be (channels, height, width) or (height, width), got "
            f"{tuple(shape)}"
        )
    return full


def context_sizes(where: str, classes: int, context_shape: Sequence[int] | None) -> tuple[int, int]:
    """Return the lengths of a context vector and of the vectors of a context sequence.

    Raises:
        DomainError: The context is neither, or goes with classes.

    Example:
        >>> context_sizes("unet", 0, (7, 3))
        (0, 3)
    """
    if context_shape is None:
        return 0, 0
    if classes or len(context_shape) not in (1, 2) or min(context_shape) < 1:
        raise DomainError(
            f"{where}: context_shape must be (n,) for vectors or (tokens, n) for sequences, and "
            f"not go with classes, got context_shape={tuple(context_shape)}, classes={classes}"
        )
    vector = len(context_shape) == 1
    return (context_shape[0], 0) if vector else (0, context_shape[1])


def span_time(frequencies: int, scale: float) -> TimeEmbedding:
    """Return how the network of average velocities sees the start and the span.

    Example:
        >>> span_time(4, 30.0).features
        16
    """
    start, span = (SinusoidalTime(frequencies, scale=scale) for _ in range(2))
    return SpanTime(start, span)


def image_field_flow(
    field: Field,
    shape: Sequence[int],
    *,
    context_shape: Sequence[int] | None = None,
    levels: int | None = None,
    average: bool = False,
) -> Flow:
    """Return the flow of images along a field on (channels, height, width).

    Args:
        field: The field, on images with channels.
        shape: Shape of one image of the data, (channels, height, width) or (height, width).
        context_shape: Shape of one condition of the field, or None.
        levels: Number of grey levels of integer images, or None for floating images.
        average: Leap along the field, whose network then sees two times.

    Example:
        >>> from cflow.field import UNetField
        >>> field = UNetField((1, 4, 4), width=8, heads=2)
        >>> flow = image_field_flow(field, (4, 4), levels=17)
        >>> flow.base.event_shape, flow.event_shape
        ((1, 4, 4), (4, 4))
    """
    full = field_shape("image_field_flow", shape)
    carrier: Transport = ODE(field, manifold=Euclidean(3), divergence=Hutchinson())
    if average:
        carrier = Leap(NetworkFlowMap(field), event_dim=3)
    parts: list[Transport] = []
    if len(shape) == 2:
        parts.append(Reshape(full, tuple(shape)))
    if levels is not None:
        parts += [Affine(0.5, 0.5), Dequantize(levels)]
    transport = Chain(carrier, *parts) if parts else carrier
    return Flow(Gaussian(full), transport, context_shape=context_shape)
