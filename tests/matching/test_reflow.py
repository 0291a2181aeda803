"""Pairs that a flow makes: what they are, what an online teacher gives, mixing, times of steps."""

from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from cflow import Flow, State, recipes
from cflow.base import Gaussian
from cflow.errors import DomainError, ShapeError
from cflow.field import FunctionField, MLPField
from cflow.matching import (
    LinearPath,
    MixedPairs,
    OTCoupling,
    PairedCoupling,
    PairPool,
    StepTimes,
    TeacherPairs,
    matching,
    reflow_pairs,
)
from cflow.ode import RK4, Euler, Heun
from cflow.train import BatchSource
from cflow.transport import ODE, Affine, Chain, Inverse


def growth(*, context: bool = False) -> Flow:
    """x1 = e^c x0, or e x0 without a context."""
    field = FunctionField(lambda t, x, c: x if c is None else x * c)
    return Flow(Gaussian(2), ODE(field, RK4(20)), context_shape=(1,) if context else None)


def take(source: BatchSource, count: int, batch: int, *, seed: int = 0, start: int = 0) -> list:
    return list(islice(source.batches(batch, seed=seed, start=start), count))


def same(a: list, b: list) -> bool:
    pairs = zip(a, b, strict=True)
    return all(torch.equal(s, t) for p, q in pairs for s, t in zip(p, q, strict=True))


def test_pairs_are_the_ends_of_the_field() -> None:
    x0, x1 = reflow_pairs(growth(), 50, chunk=7)
    assert torch.allclose(x1, torch.e * x0, rtol=1e-6)
    assert len(x0.unique(dim=0)) == 50  # no chunk repeats the noise of another
    context = torch.arange(50.0)[:, None] / 50
    a, b, c = reflow_pairs(growth(context=True), 50, chunk=7, context=context)
    assert torch.allclose(b, a * context.exp(), rtol=1e-6)
    assert torch.equal(c, context)
    assert not b.requires_grad
    other = reflow_pairs(growth(), 50, chunk=7, seed=1)
    assert not torch.isclose(x0[:, None], other[0]).all(-1).any()


def test_the_bar_is_silent_without_a_terminal(capsys) -> None:
    reflow_pairs(growth(), 50, chunk=7, progress=True)
    assert capsys.readouterr() == ("", "")


def test_pairs_lie_at_the_ends_of_the_ode_whatever_stands_around_it() -> None:
    ode = ODE(FunctionField(lambda t, x, c: x), RK4(20))
    flow = Flow(Gaussian(2), Chain(Affine(2.0), Chain(ode, Affine(3.0))))
    x0, x1 = reflow_pairs(flow, 1000)
    assert torch.allclose(x1, torch.e * x0, rtol=1e-6)
    # The standard deviation of 2000 normal numbers errs by 2 sqrt(1/4000); 6 of these fail by
    # chance below 1e-8.
    assert x0.std().item() == pytest.approx(2, abs=6 * 2 * 4000**-0.5)
    data = torch.randn(40, 2)
    y0, y1 = reflow_pairs(flow, 40, data=data, chunk=16)
    assert torch.allclose(y1, data / 3)
    assert torch.allclose(y0, data / 3 / torch.e, rtol=1e-6)


def test_pairs_from_images_end_where_their_field_does() -> None:
    """Grey levels are undone with noise, pulled back, and come out again as they were."""
    core = recipes.cnf(16, hidden_features=(8,), solver=RK4(30))
    flow = recipes.images(core, (4, 4), levels=17)
    data = torch.randint(17, (60, 4, 4))
    flow.initialize(data)
    x0, x1 = reflow_pairs(flow, 60, data=data, chunk=25)
    assert x0.shape == x1.shape == (60, 16)
    assert torch.equal(flow.push(x0), data.to(x0))
    assert torch.allclose(core.push(x0), x1)


def test_there_must_be_one_ode() -> None:
    ode = ODE(MLPField(2))
    for transport, count in ((Affine(2.0), 0), (Chain(ode, ode), 2), (Inverse(ode), 0)):
        with pytest.raises(DomainError, match=f"exactly one ODE, .* found {count} in"):
            reflow_pairs(Flow(Gaussian(2), transport), 5)


def test_wrong_numbers_and_contexts_are_refused() -> None:
    flow, conditional = growth(), growth(context=True)
    with pytest.raises(DomainError, match="n and chunk must be positive, got n=0"):
        reflow_pairs(flow, 0)
    with pytest.raises(DomainError, match="takes a context, got none"):
        reflow_pairs(conditional, 5)
    with pytest.raises(DomainError, match="takes no context, got"):
        reflow_pairs(flow, 5, context=torch.zeros(5, 1))
    with pytest.raises(ShapeError, match="context needs one row for each of the 5 pairs"):
        reflow_pairs(conditional, 5, context=torch.zeros(4, 1))
    with pytest.raises(ShapeError, match="data must have one leading axis"):
        reflow_pairs(flow, 5, data=torch.zeros(5, 3, 2))
    with pytest.raises(DomainError, match="data must be finite"):
        reflow_pairs(flow, 5, data=torch.full((5, 2), torch.nan))
    with pytest.raises(ShapeError, match="5 points of data need as many conditions, got 4"):
        TeacherPairs(conditional, 5, context=torch.zeros(4, 1), data=torch.zeros(5, 2))
    far = Flow(Gaussian(2), ODE(FunctionField(lambda t, x, c: x / (1 - t)[:, None]), Heun(1)))
    with pytest.raises((DomainError, RuntimeError), match="finite"):
        reflow_pairs(far, 5)


def test_a_teacher_evaluates_and_keeps_its_mode() -> None:
    flow = recipes.cnf(2, hidden_features=(16,), dropout=0.5, solver=Euler(4)).train()
    flow.base.eval()
    modes = [module.training for module in flow.modules()]
    x0, x1 = reflow_pairs(flow, 20)
    assert [module.training for module in flow.modules()] == modes
    assert torch.allclose(flow.eval().push(x0), x1)  # without dropout


def test_an_online_teacher_makes_fresh_pairs_from_seed_and_number() -> None:
    source = TeacherPairs(growth(), 100)
    assert isinstance(source, BatchSource)
    assert len(source) == 100
    found = take(source, 6, 8)
    assert same(found[2:], take(source, 4, 8, start=2))
    assert not same(found, take(source, 6, 8, seed=1))
    x0, x1 = (torch.cat(part) for part in zip(*found, strict=True))
    assert len(x0.unique(dim=0)) == 48
    assert torch.allclose(x1, torch.e * x0, rtol=1e-6)


def test_an_online_teacher_is_not_what_is_trained() -> None:
    flow = recipes.cnf(2, hidden_features=(8,), dropout=0.5, solver=Euler(4))
    source = TeacherPairs(flow, 100)
    before = take(source, 2, 8)
    loss = matching(
        flow.transport.field, LinearPath(), PairedCoupling(), before[0][1], x0=before[0][0]
    )
    loss.mean().backward()
    with torch.no_grad():
        for p in flow.parameters():
            p -= p.grad if p.grad is not None else 0
    flow.train()
    assert same(before, take(source, 2, 8))
    evaluations = flow.transport.evaluations
    take(source, 1, 8)
    assert flow.transport.evaluations == evaluations


def test_an_online_teacher_takes_conditions_and_data_in_turn() -> None:
    context = torch.arange(12.0)[:, None] / 12
    x0, x1, c = map(torch.cat, zip(*take(TeacherPairs(growth(context=True), 12, context=context),
                                        6, 4), strict=True))  # fmt: skip
    assert torch.allclose(x1, x0 * c.exp(), rtol=1e-6)
    assert torch.equal(c[:12].sort(0)[0], context)
    assert torch.equal(c[12:].sort(0)[0], context)
    assert not torch.equal(c[:12], c[12:])
    data = torch.randn(12, 2)
    y0, y1 = map(torch.cat, zip(*take(TeacherPairs(growth(), 12, data=data), 3, 4), strict=True))
    assert torch.equal(y1.sort(0)[0], data.sort(0)[0])
    assert torch.allclose(y0, y1 / torch.e, rtol=1e-6)


def labelled(n: int, label: float) -> tuple[Tensor, Tensor]:
    rows = torch.stack([torch.arange(n, dtype=torch.get_default_dtype()), torch.full((n,), label)])
    return rows.T.contiguous(), rows.T.contiguous()


def test_a_mixture_takes_its_share_from_each_source_and_every_row_in_turn() -> None:
    mixed = MixedPairs(labelled(40, 0.0), labelled(15, 1.0), share=0.3)
    assert isinstance(mixed, BatchSource)
    assert len(mixed) == round(40 / 0.7)
    found = take(mixed, 40, 10)  # 280 of the first, 120 of the second
    assert all(torch.equal(x0, x1) for x0, x1 in found)  # pairs stay together
    assert [x0[:, 1].sum().item() for x0, _ in found] == [3.0] * 40
    rows = torch.cat([x0 for x0, _ in found])
    first, second = (rows[rows[:, 1] == k, 0].long() for k in (0, 1))
    assert torch.bincount(first).tolist() == [7] * 40
    assert torch.bincount(second).tolist() == [8] * 15
    assert same(found[7:], take(mixed, 33, 10, start=7))
    assert not same(found, take(mixed, 40, 10, seed=1))
    places = torch.stack([x0[:, 1] for x0, _ in found]).sum(0)
    assert bool((places > 0).sum() > 5)  # shuffled within a batch


def test_a_mixture_takes_any_source() -> None:
    made = TeacherPairs(growth(), 50)
    pool = PairPool(torch.full((30, 2), 9.0), OTCoupling(), pool=30)
    found = take(MixedPairs(made, pool, share=0.5), 3, 8)
    assert all((x1 == 9).all(1).sum() == 4 for _, x1 in found)
    assert same(found[1:], take(MixedPairs(made, pool, share=0.5), 2, 8, start=1))


def test_mixtures_that_cannot_be_are_refused() -> None:
    a = labelled(4, 0.0)
    for share in (0.0, 1.0):
        with pytest.raises(DomainError, match="share must lie between 0 and 1"):
            MixedPairs(a, a, share=share)
    with pytest.raises(ShapeError, match="tensors of second need one leading axis of one length"):
        MixedPairs(a, (a[0], a[1][:3]), share=0.5)
    with pytest.raises(DomainError, match="leaves 0 rows of 8"):
        take(MixedPairs(a, a, share=0.01), 1, 8)
    with pytest.raises(ShapeError, match="both sources must give the same tensors"):
        take(MixedPairs(a, (*a, torch.zeros(4)), share=0.5), 1, 8)


def visited(steps: int, *, reverse: bool) -> list[float]:
    """Return the times at which Euler's method asks for the field."""
    seen: list[float] = []

    def field(t: Tensor, x: Tensor, c: Tensor | None) -> Tensor:
        seen.append(t.item())
        return torch.zeros_like(x)

    ode = ODE(FunctionField(field), Euler(steps))
    (ode.pull if reverse else ode.push)(State(torch.zeros(1, 1)))
    return seen


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_the_times_of_steps_are_those_of_euler_each_as_often(steps: int, reverse: bool) -> None:
    """A chi-square test of 7000 draws, which fails by chance below 1e-6."""
    law = StepTimes(steps, reverse)
    t = law.sample(7000, like=torch.zeros(1))
    values, counts = t.unique(return_counts=True)
    assert torch.allclose(values, torch.tensor(sorted(visited(steps, reverse=reverse))))
    assert chisquare(counts.numpy()).pvalue > 1e-6 if steps > 1 else True
    assert law.log_density(values).exp().sum().item() == pytest.approx(1)
    outside = torch.tensor([0.0 if reverse else 1.0, 0.123])
    assert bool((law.log_density(outside) == -torch.inf).all())
    again = [
        law.sample(9, like=torch.zeros(1), generator=torch.Generator().manual_seed(1)).tolist()
        for _ in range(2)
    ]
    assert again[0] == again[1]


def test_steps_are_whole_numbers() -> None:
    for steps in (0, True, 1.5):
        with pytest.raises((DomainError, TypeError), match="StepTimes"):
            StepTimes(steps)  # type: ignore[arg-type]


def test_perfect_distillation_makes_euler_exact() -> None:
    """On pairs x1 = x0 + 3 the velocity is 3 everywhere: one step equals any number."""
    field = FunctionField(lambda t, x, c: torch.full_like(x, 3.0))
    x0 = torch.randn(1000, 1)
    loss = matching(field, LinearPath(), PairedCoupling(), x0 + 3, x0=x0, times=StepTimes(4))
    assert loss.max() < 1e-20
    assert torch.allclose(ODE(field, Euler(1)).push(State(x0)).x, x0 + 3)


def test_batches_that_are_none_are_refused() -> None:
    def sources() -> Iterator[BatchSource]:
        yield TeacherPairs(growth(), 5)
        yield MixedPairs(labelled(4, 0.0), labelled(4, 1.0), share=0.5)

    for source in sources():
        with pytest.raises(DomainError, match="batch must be positive"):
            take(source, 1, 0)
    with pytest.raises(DomainError, match="start must be 0 or more"):
        take(TeacherPairs(growth(), 5), 1, 2, start=-1)
    with pytest.raises(DomainError, match="n must be positive"):
        TeacherPairs(growth(), 0)
