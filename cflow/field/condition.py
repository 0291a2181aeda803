"""Time and context as one vector, for networks whose norms it modulates.

    c = W_2 silu(W_1 waves(t) + b_1) + b_2 + embedding(context)

A context is a class label or a vector. Each has a null value that says nothing of the sample:
`classes` (one more than the last label; a negative label means the same) and the vector of zeros.
No context at all is the null value as well, so that one network learns the law of a class and that
of all data, and classifier-free guidance has both.
Sources: Dhariwal and Nichol (2021), arXiv 2105.05233, section 3.1; Peebles and Xie (2023), arXiv
2212.09748, section 3.2; Ho and Salimans (2022), Classifier-free diffusion guidance, 2207.12598.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cflow.errors import DomainError, ShapeError, expect_trailing, known
from cflow.field.time import TimeEmbedding
from cflow.typing import Times

__all__ = ["Condition"]


class Condition(nn.Module):
    """Embed times together with class labels, or with vectors.

    Args:
        features: Length of the vector that comes out.
        time: How times become features.
        classes: Number of classes, if the context is a label `(*batch,)`; 0 for none.
        context: Length of the context, if it is a vector `(*batch, context)`; 0 for none.

    Attributes:
        null: The value of a context that says nothing: `classes`, or 0.0 in every entry of a
            vector, or None without a context.

    Raises:
        DomainError: A size is out of range, or both labels and vectors are asked for.

    Example:
        >>> from cflow.field import SinusoidalTime
        >>> condition = Condition(8, SinusoidalTime(4), classes=10)
        >>> t, null = torch.rand(2), torch.full((2,), condition.null)
        >>> bool((condition(t, null) == condition(t)).all())
        True
    """

    def __init__(
        self, features: int, time: TimeEmbedding, *, classes: int = 0, context: int = 0
    ) -> None:
        super().__init__()
        if features < 1 or min(classes, context) < 0 or classes * context:
            raise DomainError(
                "Condition: features must be positive, and the context one of some classes or a "
                f"vector, got features={features}, classes={classes}, context={context}"
            )
        self.classes, self.context = classes, context
        self.null: int | float | None = classes or (0.0 if context else None)
        self.time = time
        self.first = nn.Linear(time.features, features)
        self.second = nn.Linear(features, features)
        self.labels = nn.Embedding(classes + 1, features) if classes else None
        self.given = nn.Linear(context, features, bias=False) if context else None
        if self.labels is not None:
            nn.init.normal_(self.labels.weight, std=0.02)

    def forward(self, t: Times, context: Tensor | None = None) -> Tensor:
        """Return the condition, in the dtype of the weights.

        Args:
            t: Times in [0, 1], `(*batch,)`, or whatever the embedding takes.
            context: Labels `(*batch,)`, 0 to `classes`, or vectors `(*batch, context)`, or None.

        Returns:
            `(*batch, features)`.

        Raises:
            ShapeError: The context has another shape.
            DomainError: There is a context where none is expected, or labels that are no integers
                or, on a CPU, not of these classes.
        """
        dtype = self.second.weight.dtype
        c = self.second(functional.silu(self.first(self.time(t).to(dtype))))
        if self.labels is not None:
            return c + self._of_labels(c.shape[:-1], context, self.labels)
        if context is None:
            return c
        if self.given is None:
            raise DomainError(
                f"Condition: there is no context here, got one of shape {tuple(context.shape)}; "
                "build the field with classes or context"
            )
        expect_trailing("Condition", "context", context, (*c.shape[:-1], self.context))
        return c + self.given(context.to(dtype))

    def _of_labels(self, batch: torch.Size, labels: Tensor | None, table: nn.Embedding) -> Tensor:
        if labels is None:
            return table.weight[-1]
        if labels.is_floating_point():
            raise DomainError(f"Condition: labels must be integers, got {labels.dtype}")
        if labels.shape != batch:
            raise ShapeError(
                f"Condition: there must be one label for each time, got labels of shape "
                f"{tuple(labels.shape)} and times of {tuple(batch)}"
            )
        # Only where looking is free; elsewhere torch's embedding asserts.
        if labels.device.type == "cpu" and known((labels > self.classes).any()):
            raise DomainError(
                f"Condition: labels must lie between 0 and {self.classes - 1}, or be "
                f"{self.classes} for none, got {int(labels.max())}"
            )
        return table(torch.where(labels < 0, self.classes, labels))
