"""What holds for the runs of every sampler: fixed tokens, ends, seeds, precision, grids."""

import pytest
import torch
from small_spaces import (
    FALSE_ALARM,
    WALKERS,
    Small,
    bases,
    draws_have,
    generator,
    p_value,
    walked,
)
from torch import Tensor

from cflow.base import Categorical, MaskTokens, UniformTokens
from cflow.field import LinearSchedule
from cflow.jump import (
    AdaptiveJumps,
    Corrected,
    Draw,
    EulerJumps,
    FirstHitting,
    JumpSampler,
    MixturePath,
    MixtureSteps,
    NetworkPosterior,
    Posterior,
    Restarted,
    TauLeaping,
    law,
)
from cflow.ode import CosineGrid, TimeGrid

SAMPLERS: list[JumpSampler] = [
    MixtureSteps(4),
    MixtureSteps(4, refresh=5.0),
    MixtureSteps(4, argmax=True, draw=Draw(temperature=2.0)),
    EulerJumps(4),
    TauLeaping(4),
    AdaptiveJumps(0.3),
    FirstHitting(),
    FirstHitting(order="margin"),
    Corrected(EulerJumps(4), strength=1.0),
    Restarted(EulerJumps(4), rounds=2, again=MixtureSteps(2)),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_every_sampler_keeps_fixed_tokens_ends_in_data_and_repeats_itself(sampler) -> None:
    base = MaskTokens((2, 3), 4)

    def network(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        assert context is not None
        assert context.shape == x.shape[:1]
        return torch.zeros(*x.shape, 4) + 4 * (torch.arange(4) == context[:, None, None, None])

    rates = NetworkPosterior(network, base)
    x0 = base.sample((50,))
    x0[:, 0, 0] = 3
    x0[:, 1, 1:] = 2
    before = x0.clone()
    fixed = torch.zeros(2, 3, dtype=torch.bool)
    fixed[0, 0] = fixed[1, 1:] = True
    labels = torch.arange(50) % 3
    run = lambda seed: sampler.sample(
        rates, x0, labels, base=base, fixed=fixed, generator=generator(seed)
    )
    x = run(0)
    assert torch.equal(x0, before)
    assert torch.equal(x[:, fixed], x0[:, fixed])
    assert x.dtype == torch.int64
    assert bool((x < 4).all())
    assert (x[:, ~fixed] == labels[:, None]).double().mean() > 0.7
    assert torch.equal(run(0), x)
    assert not torch.equal(run(1), x)
    narrow = sampler.sample(rates, x0.int(), labels, base=base, fixed=fixed, generator=generator(0))
    assert torch.equal(narrow, x)
    none = sampler.sample(rates, x0[:0], labels[:0], base=base)
    assert none.shape == (0, 2, 3)
    still = sampler.sample(rates, x0, labels, base=base, start=0.4, end=0.4)
    assert torch.equal(still, x0)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_tokens_that_would_all_move_stay_where_they_are_fixed(sampler) -> None:
    """Masks that stay masks, and values that the posterior has moved long since."""
    hitting = isinstance(sampler, FirstHitting)
    base = MaskTokens(4, 3) if hitting else UniformTokens(4, 3)
    there = lambda t, x, context: 30.0 * (torch.arange(3) == 2).expand(*x.shape, 3)
    rates = NetworkPosterior(there, base)
    x0 = torch.full((20, 4), 3 if hitting else 1)
    fixed = torch.rand(20, 4, generator=generator()) < 0.5
    x = sampler.sample(rates, x0, base=base, fixed=fixed, generator=generator())
    assert torch.equal(x[fixed], x0[fixed])
    assert bool((x[~fixed] == 2).all())


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_every_sampler_runs_in_single_precision_to_the_end(sampler) -> None:
    torch.set_default_dtype(torch.float32)
    small = Small(MaskTokens(2, 3))
    x = walked(small, sampler, 0.0, 1.0)
    assert bool((x < 3).all())
    if isinstance(sampler, FirstHitting):
        assert draws_have(small, x, small.law(1.0).double())


def test_steps_fall_on_any_grid() -> None:
    small = Small(bases(1)["categorical"])
    for places in (CosineGrid(), TimeGrid([0.3, 0.31, 0.7, 0.9])):
        x = walked(small, MixtureSteps(3, grid=places), 0.3, 0.9)
        assert draws_have(small, x, small.law(0.9))


def test_the_likeliest_token_is_taken_on_the_last_step_alone() -> None:
    base = UniformTokens(1, 3)
    tilted = lambda t, x, context: torch.tensor([0.2, 0.5, 0.3]).log().expand(*x.shape, 3)
    rates = NetworkPosterior(tilted, base)
    x0 = torch.full((5000, 1), 0)
    x = MixtureSteps(1, argmax=True).sample(rates, x0, base=base)
    assert bool((x == 1).all())
    x = MixtureSteps(1, argmax=True).sample(rates, x0, base=base, end=0.5, generator=generator())
    assert int((x == 2).sum()) > 0


def test_a_posterior_of_ones_own_is_as_good_as_a_network() -> None:
    class Coin(Posterior):
        """Give heads with probability 3/4."""

        def logits(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
            return torch.tensor([0.25, 0.75]).log().expand(*x.shape, 2)

    base = Categorical((), torch.tensor([0.5, 0.5]))
    coin = Coin(2, MixturePath(LinearSchedule()))
    x0 = base.sample((WALKERS,), generator=generator(5))
    x = MixtureSteps(1).sample(coin, x0, base=base, generator=generator(6))
    assert p_value(x[:, None], torch.tensor([0.25, 0.75]), 2) > FALSE_ALARM
    exact = law(coin, base, t1=0.5)
    assert torch.allclose(exact, law(coin, base, start=torch.tensor([0.5, 0.5]), t1=0.5))
