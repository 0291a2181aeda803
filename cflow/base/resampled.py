"""A base that learns to reject: proposals pass an acceptance network, or are proposed again.

    p(z) = q(z) [(1 - (1-Z)^(T-1)) a(z) / Z + (1-Z)^(T-1)],    Z = E_q[a(z)]

A draw takes the first of T - 1 proposals from q that is accepted, with probability a(z), and the
T-th if none is. It can have holes, modes and rings that no homeomorphism carries a normal law to.
Source: Stimper, Schoelkopf and Hernandez-Lobato (2022), Resampling base distributions of
normalizing flows, arXiv 2110.15828; Bauer and Mnih (2019), Resampled priors for variational
autoencoders, arXiv 1810.11428.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from cflow.base.base import Base
from cflow.base.entries import wide
from cflow.errors import DomainError, ShapeError, expect_positive
from cflow.typing import Batch, Points

__all__ = ["Resampled"]


class Resampled(Base):
    """Draw by learned acceptance and rejection, truncated after T proposals.

    What `log_prob` is: the formula with an estimate in place of Z.

    - In evaluation mode, Z is the number in store, a constant to autograd. `measure` sets it as
      precisely as wanted and reports its standard error; log p is then off by at most the relative
      error of Z, the same for every point up to the weight of (1-Z)^(T-1). Weights that change
      outside training make the number stale: measure again.
    - In training mode, Z is the mean over `draws` fresh proposals, with its gradient: log p is
      neither exact nor a bound, and biased by order 1 / draws. Each such call moves the stored
      number by `momentum` towards its estimate (so in training mode `log_prob` is not pure; use
      evaluation mode under `torch.func` or a compiler). The noise comes from a counter in the
      module, whose start torch's seed decides when it is built; no other generator is touched.

    The sampler needs no Z: its draws follow the density with the exact one. Gradients through
    `sample` reach a learned proposal, for a fixed choice of what is accepted; those towards the
    acceptance network, and those of the choice, are missing.

    Args:
        proposal: Law of the proposals, unconditional; a context is ignored, since Z is one number.
        acceptance: Called as `net(z)` on `(*batch, *event_shape)`; returns logits `(*batch, 1)`,
            a(z) = sigmoid(logit).
        truncation: Proposals T of one draw at most, at least 2.
        draws: Proposals for an estimate of Z in training.
        momentum: Share of the newest estimate in the stored Z, in (0, 1].

    Raises:
        DomainError: An option is out of range.
        ShapeError: The acceptance network returns another shape.

    Example:
        >>> from cflow.base.gaussian import Gaussian
        >>> base = Resampled(Gaussian(2), torch.nn.Linear(2, 1), truncation=10).eval()
        >>> z, error = base.measure(10_000)
        >>> base.log_prob(base.sample((5,))).shape, error < 0.01
        (torch.Size([5]), True)
    """

    def __init__(
        self,
        proposal: Base,
        acceptance: Callable[[Tensor], Tensor],
        *,
        truncation: int = 100,
        draws: int = 1024,
        momentum: float = 0.05,
    ) -> None:
        super().__init__(proposal.event_shape)
        expect_positive("Resampled", draws=draws, momentum=momentum)
        if truncation < 2:
            raise DomainError(f"Resampled: truncation must be 2 or more, got {truncation}")
        if momentum > 1:
            raise DomainError(f"Resampled: momentum must lie in (0, 1], got {momentum}")
        self.proposal, self.acceptance = proposal, acceptance
        self.truncation, self.draws, self.momentum = truncation, draws, momentum
        self.count: Tensor
        self.log_z: Tensor
        self.register_buffer("count", torch.randint(2**62, ()))
        self.register_buffer("log_z", torch.zeros(2))  # log Z and log(1 - Z), each with its digits
        with torch.no_grad():
            self.log_z.copy_(self._estimate())

    def sample(
        self,
        shape: tuple[int, ...],
        context: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Points:
        total = math.prod(shape)
        x = self.proposal.sample((total,), generator=generator)
        waiting = self._rejected(x, torch.arange(total, device=x.device), generator)
        for turn in range(2, self.truncation + 1):
            if not len(waiting):
                break
            fresh = self.proposal.sample((len(waiting),), generator=generator)
            x = x.index_put((waiting,), fresh)
            if turn < self.truncation:  # the last proposal is taken as it is
                waiting = self._rejected(fresh, waiting, generator)
        return x.reshape(*shape, *self.event_shape)

    def log_prob(self, x: Points, context: Tensor | None = None) -> Batch:
        x = self._enter(x)
        log_z = wide(self.log_z)
        if self.training:
            log_z = self._estimate()
            self._follow(log_z.detach())
        log_accept, log_reject = log_z[0], log_z[1]
        log_last = (self.truncation - 1) * log_reject
        log_chosen = (-torch.expm1(log_last)).log() - log_accept
        weight = torch.logaddexp(log_chosen + logsigmoid(self._logit(x)), log_last)
        return self.proposal.log_prob(x) + weight

    @torch.no_grad()
    def measure(
        self, draws: int = 100_000, *, chunk: int = 10_000, generator: Generator | None = None
    ) -> tuple[float, float]:
        """Estimate Z from fresh proposals and store it.

        Args:
            draws: Proposals, at least 2.
            chunk: Proposals that pass the network at once.
            generator: Source of the proposals.

        Returns:
            Z and its standard error.
        """
        if draws < 2 or chunk < 1:
            raise DomainError(
                f"Resampled.measure: draws must be 2 or more and chunk positive, got {draws} and "
                f"{chunk}"
            )
        sizes = [chunk] * (draws // chunk) + [draws % chunk] * (draws % chunk > 0)
        logits = [self._logit(self.proposal.sample((n,), generator=generator)) for n in sizes]
        logit = torch.cat(logits).double()
        self.log_z.copy_(_log_means(logit))
        accepted = logit.sigmoid()
        return accepted.mean().item(), accepted.std().item() / draws**0.5

    def _logit(self, x: Tensor) -> Tensor:
        logit = self.acceptance(x.to(self.log_z.dtype))  # the precision that the module is in
        batch = x.shape[: x.dim() - len(self.event_shape)]
        if logit.shape != (*batch, 1):
            raise ShapeError(
                f"Resampled: the acceptance network must return shape {(*batch, 1)} for points of "
                f"shape {tuple(x.shape)}, got {tuple(logit.shape)}"
            )
        return wide(logit.squeeze(-1))

    @torch.no_grad()
    def _rejected(self, x: Tensor, index: Tensor, generator: Generator | None) -> Tensor:
        """Return the entries of `index` whose points, the rows of x, are not accepted."""
        chance = self._logit(x).sigmoid()
        u = torch.rand(chance.shape, dtype=chance.dtype, device=x.device, generator=generator)
        return index[u >= chance]

    def _estimate(self) -> Tensor:
        """Estimate log Z and log(1 - Z) from fresh proposals of the counter's noise."""
        generator = Generator(self.log_z.device).manual_seed(int(self.count))
        return _log_means(self._logit(self.proposal.sample((self.draws,), generator=generator)))

    @torch.no_grad()
    def _follow(self, log_z: Tensor) -> None:
        """Move the stored Z towards an estimate, and the counter on."""
        mixed = torch.lerp(wide(self.log_z).exp(), log_z.exp(), self.momentum).log()
        self.log_z.copy_(mixed.clamp_min(torch.finfo(mixed.dtype).min))
        self.count.add_(1)


def _log_means(logit: Tensor) -> Tensor:
    """Return the logarithms of the means of sigmoid(logit) and of sigmoid(-logit)."""
    both = torch.stack([logsigmoid(logit), logsigmoid(-logit)])
    return torch.logsumexp(both, 1) - math.log(len(logit))
