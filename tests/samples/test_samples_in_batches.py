"""Drawing from flows: any batch size, one generator, bars that move, and flows left as they are."""

from typing import ClassVar

import pytest
import torch
from sampler_cases import normal_field
from torch import Generator, Tensor

from cflow import Flow, State, tracked
from cflow.base import DiagonalGaussian, Gaussian, tempered
from cflow.errors import DomainError, ShapeError
from cflow.field import FunctionField, LinearSchedule, MLPField
from cflow.manifold import Euclidean, Sphere
from cflow.ode import Checkpoint, Direct, Dopri5, Euler, Torchdiffeq
from cflow.samples import (
    SDE,
    CurvedEuler,
    PredictorCorrector,
    SampledTransport,
    batches,
    draw,
    log_probs,
    sampler,
    watch,
    with_sampler,
)
from cflow.transport import ODE, Affine, Chain, Inverse


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def conditional() -> Flow:
    return Flow(Gaussian(2), ODE(MLPField(2, 3), Euler(4)), context_shape=(3,))


@pytest.mark.parametrize("by", [None, CurvedEuler(4)], ids=["solver", "sampler"])
def test_the_batch_size_changes_nothing_but_the_memory(by: CurvedEuler | None) -> None:
    rows: list[int] = []

    def field(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        rows.append(len(x))
        return torch.sin(x)

    flow = Flow(Gaussian((2, 2)), ODE(FunctionField(field), Euler(4), manifold=Euclidean(2)))
    whole = draw(flow, 10, sampler=by, generator=seeded())
    assert whole.shape == (10, 2, 2)
    assert not whole.requires_grad
    for batch in (1, 3, 10, 99):
        rows.clear()
        x = draw(flow, 10, sampler=by, batch=batch, generator=seeded())
        assert torch.allclose(x, whole, rtol=0, atol=1e-12)
        assert max(rows) == min(batch, 10)
    drawer = flow if by is None else with_sampler(flow, by)
    assert torch.equal(drawer.sample(10, generator=seeded()), whole)
    assert not torch.equal(draw(flow, 10, sampler=by, generator=seeded(1)), whole)


def test_conditions_are_one_or_one_for_each() -> None:
    flow = conditional()
    contexts = torch.randn(5, 3)
    each = draw(flow, 5, contexts, sampler=CurvedEuler(3), batch=2, generator=seeded())
    same = draw(flow, 5, contexts[4], sampler=CurvedEuler(3), batch=2, generator=seeded())
    assert torch.allclose(each[4], same[4], rtol=0, atol=1e-12)
    assert not torch.allclose(each[:4], same[:4])
    x = torch.randn(5, 2)
    values = log_probs(flow, x, contexts, batch=2)
    assert torch.allclose(values, flow.log_prob(x, contexts), rtol=0, atol=1e-12)
    single = log_probs(flow, x, contexts[4], batch=3)
    assert torch.allclose(single[4], values[4], rtol=0, atol=1e-12)
    assert not torch.allclose(single[:4], values[:4])
    with pytest.raises(ShapeError, match=r"draw: the context must be one condition \(3,\) or one"):
        draw(flow, 4, contexts)
    with pytest.raises(ShapeError, match="draw: context must end in shape"):
        draw(flow, 4, torch.randn(4, 2))
    with pytest.raises(DomainError, match="this flow needs a context"):
        draw(flow, 4)
    with pytest.raises(DomainError, match="this flow is unconditional"):
        draw(Flow(Gaussian(2), Chain()), 4, contexts)


def test_log_probs_are_those_of_the_flow() -> None:
    flow = Flow(Gaussian(3), ODE(MLPField(3), Dopri5(1e-3, 1e-3)))
    x = torch.randn(7, 3)
    expected = flow.log_prob(x)
    for batch in (1, 4, 7):
        values = log_probs(flow, x, batch=batch)
        assert torch.allclose(values, expected, rtol=0, atol=1e-12)
        assert not values.requires_grad


def test_a_sampler_reaches_the_law_through_a_flow() -> None:
    """At 20,000 samples the mean has a standard error of 0.014, the variance one of 0.04."""
    flow = Flow(Gaussian(1), ODE(FunctionField(normal_field(LinearSchedule()))))
    for by in (SDE(40), PredictorCorrector(SDE(20))):
        x = draw(flow, 20_000, sampler=by, batch=8192, generator=seeded())
        assert x.mean().item() == pytest.approx(2.0, abs=6 * 0.014)
        assert x.var().item() == pytest.approx(4.0, abs=6 * 0.04 + 0.1)
    cool = Flow(tempered(flow.base, 0.5), flow.transport)
    x = draw(cool, 20_000, sampler=CurvedEuler(100), generator=seeded())
    assert x.var().item() == pytest.approx(1.0, abs=6 * 0.01 + 0.03)


def test_layers_stay_around_the_ode_and_modules_are_shared() -> None:
    field = MLPField(2)
    flow = Flow(Gaussian(2), Chain(ODE(field, Euler(3)), Chain(Affine(2.0)))).eval()
    again = with_sampler(flow, CurvedEuler(3))
    assert torch.allclose(
        again.sample((4, 3), generator=seeded()), flow.sample((4, 3), generator=seeded())
    )
    assert not again.training
    assert {id(p) for p in again.parameters()} == {id(p) for p in flow.parameters()}
    assert isinstance(flow.transport[0], ODE)  # type: ignore[index]
    assert with_sampler(flow, SDE(3)).sample(4).shape == (4, 2)
    assert again.push(torch.zeros(2)).shape == (2,)


def test_sampled_flows_refuse_densities() -> None:
    again = with_sampler(conditional(), SDE(3))
    x, context = torch.zeros(4, 2), torch.zeros(4, 3)
    for call in (
        lambda: again.log_prob(x, context),
        lambda: again.pull(x, context),
        lambda: again.likelihood,
        lambda: again.transport.push(tracked(x), context),
    ):
        with pytest.raises(DomainError, match="a sampler carries points and no density"):
            call()
    assert again.transport.push(State(x), context).x.shape == x.shape


def test_flows_that_no_sampler_fits_are_refused() -> None:
    ode = ODE(MLPField(2))
    with pytest.raises(DomainError, match="exactly one ODE to be sampled, found 0 in Chain"):
        with_sampler(Flow(Gaussian(2), Chain()), CurvedEuler())
    with pytest.raises(DomainError, match="found 2 in Chain"):
        with_sampler(Flow(Gaussian(2), Chain(ode, Inverse(ODE(MLPField(2))))), CurvedEuler())
    other = Flow(DiagonalGaussian(2), ode)
    with pytest.raises(DomainError, match=r"SDE draws standard normal noise, .* DiagonalGaussian"):
        with_sampler(other, SDE())
    with pytest.raises(DomainError, match="got Gaussian before Affine"):
        with_sampler(Flow(Gaussian(2), Chain(Affine(2.0), ode)), SDE())
    assert draw(other, 3, sampler=CurvedEuler(2)).shape == (3, 2)
    with pytest.raises(DomainError, match="need flat space, got Sphere"):
        SampledTransport(ODE(MLPField(3), manifold=Sphere()), CurvedEuler())


def test_counts_and_shapes_are_checked() -> None:
    flow = Flow(Gaussian(2), Chain())
    for n, batch in ((0, 1), (3, 0), (True, 1)):
        with pytest.raises(DomainError, match=r"draw: .* must be a whole number of at least 1"):
            draw(flow, n, batch=batch)
    with pytest.raises(DomainError, match="log_probs: batch must be a whole number"):
        log_probs(flow, torch.zeros(3, 2), batch=-1)
    for x in (torch.zeros(2), torch.zeros(0, 2), torch.zeros(3, 3, 2)):
        with pytest.raises(ShapeError, match="log_probs: x must have one batch axis"):
            log_probs(flow, x)
    with pytest.raises(ShapeError, match="log_probs: x must end in shape"):
        log_probs(flow, torch.zeros(3, 3))


class Bar:
    """Stand in for a progress bar, and keep what it was told."""

    made: ClassVar[list["Bar"]] = []

    def __init__(self, **options) -> None:
        self.total, self.disable, self.name = options["total"], options["disable"], options["desc"]
        self.n = 0.0
        self.seen: list[float] = []
        Bar.made.append(self)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error) -> None:
        pass

    def update(self, by: float = 1) -> None:
        self.n += by
        self.seen.append(self.n)

    def set_postfix(self, **figures) -> None:
        self.figures = figures


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    Bar.made.clear()
    for module in (batches, sampler, watch):
        monkeypatch.setattr(module, "tqdm", Bar)
    return Bar.made


@pytest.mark.parametrize("solver", [Euler(4), Dopri5(), Torchdiffeq("rk4")], ids=str)
def test_bars_follow_batches_and_the_time_of_solves(solver, bars: list[Bar]) -> None:
    adjoint = Direct() if isinstance(solver, Torchdiffeq) else Checkpoint()
    flow = Flow(Gaussian(2), ODE(MLPField(2), solver, adjoint=adjoint))
    plain = flow.sample(5, generator=seeded())
    x = draw(flow, 5, batch=2, generator=seeded(), progress=True)
    assert torch.allclose(x, plain, rtol=0, atol=1e-5)
    outer, *inner = bars
    assert (outer.total, outer.n, outer.seen) == (5, 5, [2, 4, 5])
    assert len(inner) == 3
    for bar in inner:
        assert bar.disable is None
        assert bar.total == 1.0
        assert bar.seen == sorted(bar.seen)
        assert 0.7 <= bar.n <= 1.0
        assert bar.figures["nfe"] >= 4
    bars.clear()
    values = log_probs(flow, x, batch=3, progress=True)
    assert torch.allclose(values, log_probs(flow, x), rtol=0, atol=1e-4)
    assert [bar.total for bar in bars[:3]] == [5, 1.0, 1.0]
    assert 0.7 <= bars[1].n <= 1.0


def test_bars_follow_the_steps_of_samplers_and_are_silent_unasked(bars: list[Bar]) -> None:
    flow = conditional()
    draw(flow, 5, torch.zeros(3), sampler=SDE(7), batch=3, progress=True)
    assert [bar.total for bar in bars] == [5, 7, 7]
    assert [bar.n for bar in bars] == [5, 7, 7]
    assert {bar.disable for bar in bars} == {None}
    bars.clear()
    draw(flow, 5, torch.zeros(3), sampler=SDE(7), batch=3)
    draw(flow, 5, torch.zeros(3), batch=3)
    assert {bar.disable for bar in bars} == {True}
