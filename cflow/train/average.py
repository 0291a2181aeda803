"""Averaged weights: an exponential average over the steps, which forgets the first ones soon.

average <- d average + (1 - d) weights,    d = min(decay, (1 + n) / (10 + n)) after n steps
"""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["averaged"]


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of a model whose weights will follow its own as their average.

    Averages of low precision are kept in float32, where a step of a thousandth is not rounded away;
    buffers are those of the last step.

    Args:
        model: What is trained.
        decay: Share of the average that a step keeps, in [0, 1); less in the first steps.

    Example:
        >>> copy = averaged(nn.Linear(1, 1), 0.9)
        >>> copy.update_parameters(nn.Linear(1, 1))
    """

    def average(old: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
        n = float(count)
        return torch.lerp(new.to(old.dtype), old, min(decay, (1 + n) / (10 + n)))

    copy = AveragedModel(model, avg_fn=average)
    for weight in copy.parameters():
        weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))
    return copy
