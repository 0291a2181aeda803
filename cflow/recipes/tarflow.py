"""TarFlow: images as sequences of patches, moved by transformers in alternating order.

base --transformer layers--> patches --lay out--> image (--scale, floor--> 0 .. levels - 1)

Source: Zhai et al. (2024), Normalizing flows are capable generative models, arXiv 2412.06329.
"""

from collections.abc import Sequence

from cflow.base import Gaussian
from cflow.errors import DomainError
from cflow.flow import Flow
from cflow.nets import CausalTransformer
from cflow.recipes.orientation import Fast, oriented
from cflow.recipes.recipe import recipe
from cflow.transport import (
    ActNorm,
    AdditiveMap,
    Affine,
    AffineMap,
    Chain,
    Dequantize,
    GaussianNoise,
    LabelDropout,
    Patches,
    TransformerLayer,
    Transport,
)

__all__ = ["tarflow"]


@recipe
def tarflow(
    shape: Sequence[int],
    classes: int = 0,
    *,
    context: int = 0,
    patch: int = 4,
    width: int = 128,
    blocks: int = 4,
    layers: int = 4,
    heads: int = 4,
    expansion: int = 4,
    bound: float = 3.0,
    additive: bool = False,
    learned_base: bool = False,
    noise: float = 0.0,
    levels: int | None = None,
    label_dropout: float = 0.1,
    fast: Fast = "density",
) -> Flow:
    """Build a TarFlow on images; it starts as the identity on patches.

    There are two variants. For likelihoods set `levels`: the data are integers, dequantised
    uniformly and scaled to [-1, 1], and `log_prob` is a bound in nats of the integers. For samples
    set `noise`: in training Gaussian noise of that size is added to floating images, best scaled to
    [-1, 1]; the flow then is a density of *noisy* images, exact in evaluation mode, and draws noisy
    ones, which `cflow.samples.denoise` cleans. Guide samples by `cflow.samples.guided`.

    Args:
        shape: Shape of one image, `(channels, height, width)` or `(height, width)`.
        classes: Number of classes; the context is then an integer label `(*batch,)`, -1 for none.
        context: Length of the context vector, instead of classes; 0 for none.
        patch: Side of a patch in pixels.
        width: Length of the transformers' hidden vectors.
        blocks: Transformer layers of the flow, in alternating order over patches.
        layers: Attention and MLP blocks within each.
        heads: Attention heads; they share the width.
        expansion: Hidden width of the MLPs in units of `width`.
        bound: Largest absolute log-scale of one layer.
        additive: Shift only (volume preserving); the spread of the base is then learned.
        learned_base: Learn mean and spread of the base also without `additive`; `initialize` sets
            them from a batch.
        noise: Standard deviation of the noise in training, in units of the images; 0 for none.
        levels: Number of grey levels of integer images, or None for floating images.
        label_dropout: Probability with which a label is hidden in training, for guidance.
        fast: What takes one parallel pass a layer; the other goes patch by patch.

    Raises:
        ShapeError: The shape has neither two nor three axes.
        DomainError: A size is out of range, or options exclude each other.

    Example:
        >>> import torch
        >>> flow = tarflow((1, 8, 8), 10, width=16, blocks=2, layers=1, levels=17)
        >>> images, labels = torch.zeros(3, 1, 8, 8, dtype=torch.long), torch.tensor([0, 9, -1])
        >>> flow.log_prob(images, labels).shape
        torch.Size([3])
    """
    if blocks < 1:
        raise DomainError(f"tarflow: at least 1 block is needed, got {blocks}")
    if noise < 0 or (noise and levels is not None):
        raise DomainError(
            f"tarflow: noise is for floating images and levels, which dequantise, for integer "
            f"ones; give one of them, got noise={noise}, levels={levels}"
        )
    patches = Patches(shape, patch)
    tokens, channels = patches.sequence
    univariate = AdditiveMap() if additive else AffineMap(bound)
    stack: list[Transport] = []
    for k in reversed(range(blocks)):  # the one next to the data reads forward
        network = CausalTransformer(
            tokens,
            channels,
            channels * univariate.parameters,
            width=width,
            layers=layers,
            heads=heads,
            expansion=expansion,
            classes=classes,
            context=context,
        )
        layer = TransformerLayer(network, univariate, reverse=k % 2 == 1)
        stack.append(oriented(layer, fast))
    moved: Transport = Chain(*stack)
    if classes and label_dropout:
        moved = LabelDropout(moved, label_dropout)
    parts: list[Transport] = [ActNorm(patches.sequence)] if additive or learned_base else []
    parts += [moved, patches]
    if noise:
        parts.append(GaussianNoise(noise))
    if levels is not None:
        parts += [Affine(0.5, 0.5), Dequantize(levels)]
    context_shape = () if classes else (context,) if context else None
    return Flow(Gaussian(patches.sequence), Chain(*parts), context_shape=context_shape)
