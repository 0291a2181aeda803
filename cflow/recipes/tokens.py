"""Flows of tokens: a base of masks or uniform tokens, and a network that predicts the data.

    x0 ~ base --jumps along a mixture path--> x1,    p(x1 | x_t) = softmax(network(t, x_t, context))

Train them by `negative_elbo` or `jump_matching`.
Source: Gat et al. (2024), Discrete flow matching, arXiv 2407.15595; masks: Sahoo et al. (2024),
Simple and effective masked diffusion language models, arXiv 2406.07524, and Ou et al. (2024),
arXiv 2406.03736, theorem 1, for a network that sees no time.
"""

from collections.abc import Sequence
from typing import Literal

from cflow.base import MaskTokens, TokenBase, UniformTokens
from cflow.errors import DomainError
from cflow.field import LinearSchedule, PathSchedule
from cflow.jump import (
    JumpFlow,
    MixturePath,
    MixtureSteps,
    NetworkPosterior,
    TokenMLP,
    TransformerRates,
)
from cflow.nets import Activation
from cflow.recipes.recipe import recipe

__all__ = ["token_mlp", "token_transformer"]


@recipe
def token_transformer(
    length: int,
    vocabulary: int,
    classes: int = 0,
    *,
    context: int = 0,
    base: Literal["mask", "uniform"] = "mask",
    timed: bool | None = None,
    width: int = 256,
    layers: int = 6,
    heads: int = 4,
    expansion: int = 4,
    dropout: float = 0.0,
    schedule: PathSchedule | None = None,
    steps: int = 64,
) -> JumpFlow:
    """Build a flow of sequences of tokens along the predictions of a transformer.

    Args:
        length: Tokens of a sequence.
        vocabulary: How many values a token has, 0 .. vocabulary - 1.
        classes: Number of classes; the context is then an integer label `(*batch,)`, and `classes`
            itself, or a negative label, means none. 0 for no classes.
        context: Length of the context, if it is a vector; 0 for none.
        base: All masks, or uniform tokens, which may jump more than once.
        timed: Whether the network sees time; by default unless it sees masks, whose number tells.
        width: Length of the hidden vectors.
        layers: Number of blocks.
        heads: Attention heads; each needs an even share of the width.
        expansion: Hidden width of the MLPs in units of `width`.
        dropout: Dropout probability in training.
        schedule: How the share of data rises; `LinearSchedule()` by default.
        steps: Steps of the sampler, `MixtureSteps(steps)`.

    Raises:
        DomainError: A size is out of range, or both kinds of context are asked for.

    Example:
        >>> import torch
        >>> flow = token_transformer(8, 27, classes=3, width=16, layers=1, heads=2, steps=4)
        >>> flow.sample((), torch.tensor([0, 2])).shape
        torch.Size([2, 8])
    """
    start = _base("token_transformer", length, vocabulary, base)
    network = TransformerRates(
        length,
        start.states,
        vocabulary,
        classes=classes,
        context=context,
        timed=not start.absorbing if timed is None else timed,
        width=width,
        layers=layers,
        heads=heads,
        expansion=expansion,
        dropout=dropout,
    )
    given = () if classes else (context,) if context else None
    return _flow(start, network, schedule, steps, given)


@recipe
def token_mlp(
    event_shape: Sequence[int] | int,
    vocabulary: int,
    context: int = 0,
    *,
    base: Literal["mask", "uniform"] = "mask",
    embedding: int = 64,
    hidden_features: Sequence[int] = (256, 256, 256),
    activation: Activation = "silu",
    schedule: PathSchedule | None = None,
    steps: int = 64,
) -> JumpFlow:
    """Build a flow of a few tokens along the predictions of a perceptron.

    Args:
        event_shape: Shape of one point, or a length.
        vocabulary: How many values a token has, 0 .. vocabulary - 1.
        context: Length of the context vector; 0 for an unconditional flow.
        base: All masks, or uniform tokens, which may jump more than once.
        embedding: Length of the vector that stands for a token.
        hidden_features: Widths of the hidden layers.
        activation: The function between layers.
        schedule: How the share of data rises; `LinearSchedule()` by default.
        steps: Steps of the sampler, `MixtureSteps(steps)`.

    Raises:
        DomainError: A size is out of range.

    Example:
        >>> token_mlp((4, 4), 10, base="uniform", hidden_features=(16,), steps=4).sample(5).shape
        torch.Size([5, 4, 4])
    """
    start = _base("token_mlp", event_shape, vocabulary, base)
    network = TokenMLP(
        event_shape,
        start.states,
        vocabulary,
        context,
        embedding=embedding,
        hidden_features=hidden_features,
        activation=activation,
    )
    return _flow(start, network, schedule, steps, (context,) if context else None)


def _base(where: str, event_shape: Sequence[int] | int, vocabulary: int, base: str) -> TokenBase:
    laws = {"mask": MaskTokens, "uniform": UniformTokens}
    if base not in laws:  # a file may say anything
        raise DomainError(f"{where}: base must be 'mask' or 'uniform', got {base!r}")
    return laws[base](event_shape, vocabulary)


def _flow(
    base: TokenBase,
    network: TransformerRates | TokenMLP,
    schedule: PathSchedule | None,
    steps: int,
    context_shape: tuple[int, ...] | None,
) -> JumpFlow:
    path = MixturePath(LinearSchedule() if schedule is None else schedule)
    rates = NetworkPosterior(network, base, path)
    return JumpFlow(base, rates, sampler=MixtureSteps(steps), context_shape=context_shape)
