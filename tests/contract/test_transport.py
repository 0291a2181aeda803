"""What every transport owes, asked of every case in the registry."""

from dataclasses import replace

import pytest
import torch
import torch._dynamo.testing
from case import TransportCase
from cases import TRANSPORTS
from torch import Tensor

from cflow import Flow, State, tracked
from cflow.base import Gaussian
from cflow.errors import DomainError, ShapeError
from cflow.manifold import Torus
from cflow.ode import Dopri5, Euler
from cflow.transport import ODE, Transport

every = pytest.mark.parametrize("case", TRANSPORTS, ids=lambda case: case.name)
with_context = pytest.mark.parametrize(
    "case", [case for case in TRANSPORTS if case.context], ids=lambda case: case.name
)
with_parameters = pytest.mark.parametrize(
    "case",
    [case for case in TRANSPORTS if list(case.build().parameters())],
    ids=lambda case: case.name,
)
traceable = pytest.mark.parametrize(
    "case", [case for case in TRANSPORTS if case.traceable], ids=lambda case: case.name
)

compiled = pytest.mark.parametrize(
    "case",
    [case for case in TRANSPORTS if case.traceable and case.compiled],
    ids=lambda case: case.name,
)

SOLVERS = ("ode, midpoint", "ode, heun", "ode, rk4")  # cases that are there for their solver


def start(case: TransportCase, x: Tensor) -> State:
    return tracked(x, event_dim=len(case.event))


def ladj(state: State) -> Tensor:
    assert state.ladj is not None
    return state.ladj


def beside(case: TransportCase, x: Tensor, y: Tensor) -> Tensor:
    """Return x, on a torus moved by whole turns next to y."""
    return y + case.manifold.logmap(y, x) if isinstance(case.manifold, Torus) else x


@every
def test_pull_undoes_push_and_the_account_closes_at_zero(case: TransportCase) -> None:
    transport, (x, context) = case.make(), case.draw(5)
    there = transport.push(start(case, x), context)
    back = transport.pull(there, context)
    assert torch.allclose(beside(case, back.x, x), x, rtol=0, atol=case.round_trip)
    assert torch.allclose(ladj(back), torch.zeros(5), rtol=0, atol=case.round_trip)


@every
def test_ladj_is_the_log_determinant_of_the_autograd_jacobian(case: TransportCase) -> None:
    transport, (x, context) = case.make(), case.draw(2)
    y = transport.push(State(x), context).x
    for method, points in ((transport.push, x), (transport.pull, y)):
        state = method(tracked(points, event_dim=points.dim() - 1), context)
        for k in range(len(points)):
            given = None if context is None else context[k : k + 1]
            move = lambda z, method=method, given=given: method(State(z[None]), given).x[0]
            jacobian = torch.autograd.functional.jacobian(move, points[k])
            expected = log_det(case, jacobian, points[k], move(points[k]))
            assert torch.allclose(ladj(state)[k], expected, rtol=0, atol=case.jacobian)
        largest = ladj(state).abs().max()
        assert largest == 0 or largest > 20 * case.jacobian, "the bound is too wide to see a fault"


def log_det(case: TransportCase, jacobian: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return log|det|; on a manifold between tangent spaces, in units of its volume."""
    size = x.numel()
    matrix, gained = jacobian.reshape(size, size), torch.zeros(())
    if case.manifold is not None:
        before, after = case.manifold.frame(x), case.manifold.frame(y)
        if before is not None and after is not None:
            matrix = after[1].flatten(1) @ matrix @ before[0].flatten(1).mT
        start, end = (case.manifold.log_volume_element(point) for point in (x, y))
        gained = gained if start is None or end is None else end - start
    return torch.linalg.slogdet(matrix).logabsdet + gained


@every
def test_points_only_take_the_same_way_as_tracked_ones(case: TransportCase) -> None:
    transport, (x, context) = case.make(), case.draw(5)
    plain, full = transport.push(State(x), context), transport.push(start(case, x), context)
    assert plain.ladj is None
    # An adaptive solver steps otherwise when it also controls the error of ladj.
    assert torch.allclose(plain.x, full.x, rtol=0, atol=1e-12 if case.traceable else 1e-7)


@every
def test_the_account_adds_up_and_nothing_of_the_caller_is_written_into(case: TransportCase) -> None:
    transport, (x, context) = case.make(), case.draw(5)
    before = [x.clone(), None if context is None else context.clone()]
    opening = torch.arange(5.0)
    fresh = transport.push(start(case, x), context)
    carried = transport.push(State(x, ladj=opening), context)
    assert torch.allclose(ladj(carried), opening + ladj(fresh), rtol=0, atol=1e-7)
    assert torch.equal(x, before[0])
    assert context is None or torch.equal(context, before[1])
    assert torch.equal(opening, torch.arange(5.0))


@every
def test_a_sample_does_not_depend_on_its_batch_mates(case: TransportCase) -> None:
    transport, (x, context) = case.make(), case.draw(3)
    together = transport.push(start(case, x), context)
    for k in range(3):
        alone = transport.push(
            start(case, x[k : k + 1]), None if context is None else context[k : k + 1]
        )
        assert torch.allclose(alone.x[0], together.x[k], rtol=0, atol=1e-10)
        assert torch.allclose(ladj(alone)[0], ladj(together)[k], rtol=0, atol=1e-10)


@every
@pytest.mark.parametrize("batch", [(), (0,), (2, 3), (2, 0)], ids=str)
def test_any_number_of_batch_axes(case: TransportCase, batch: tuple[int, ...]) -> None:
    transport, (x, context) = case.make(), case.draw(*batch)
    state = transport.push(start(case, x), context)
    flat = transport.push(
        start(case, x.reshape(-1, *case.event)),
        None if context is None else context.reshape(-1, *(case.context or ())),
    )
    assert ladj(state).shape == batch
    assert torch.allclose(state.x.reshape(flat.x.shape), flat.x, rtol=0, atol=1e-10)
    assert torch.allclose(ladj(state).reshape(-1), ladj(flat), rtol=0, atol=1e-10)


@with_parameters
def test_gradients_reach_every_parameter_the_points_and_the_context(case: TransportCase) -> None:
    transport, (x, context) = case.make(), case.draw(4)
    x.requires_grad_()
    if context is not None:
        context.requires_grad_()
    for method in (transport.push, transport.pull):
        transport.zero_grad()
        base = x if method == transport.push else transport.push(State(x), context).x.detach()
        points = base.detach().requires_grad_()
        state = method(tracked(points, event_dim=points.dim() - 1), context)
        (state.x.square().sum() + ladj(state).sum()).backward()
        assert points.grad is not None
        assert bool((points.grad != 0).all())
        for name, parameter in transport.named_parameters():
            assert parameter.grad is not None, name
            assert bool((parameter.grad != 0).any()), name
        assert context is None or (context.grad is not None and bool((context.grad != 0).any()))


@with_context
def test_the_context_matters(case: TransportCase) -> None:
    transport, (x, context) = case.make(), case.draw(4)
    assert context is not None
    here, there = (
        transport.push(start(case, x), context),
        transport.push(start(case, x), context + 1),
    )
    assert bool((here.x != there.x).flatten(1).any(-1).all())
    assert bool((ladj(here) != ladj(there)).all())


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_points_keep_their_dtype_and_ladj_never_falls_below_float32(
    case: TransportCase, dtype: torch.dtype
) -> None:
    if dtype is torch.bfloat16 and not case.traceable:
        pytest.skip("tolerances of 1e-10 mean nothing in bfloat16")
    transport, (x, context) = case.make(), case.draw(5)
    exact = transport.push(start(case, x), context)
    transport = loosened(transport).to(dtype)
    low = transport.push(start(case, x.to(dtype)), None if context is None else context.to(dtype))
    assert low.x.dtype == dtype
    assert ladj(low).dtype == torch.float32
    tolerance = 1e-3 if dtype is torch.float32 else 0.2
    seen = beside(case, low.x.double(), exact.x)
    assert torch.allclose(seen, exact.x, rtol=tolerance, atol=tolerance)
    assert torch.allclose(ladj(low).double(), ladj(exact), rtol=tolerance, atol=2 * tolerance)


def loosened(transport: Transport) -> Transport:
    """Give adaptive solvers tolerances that float32 can meet."""
    for part in transport.modules():
        if isinstance(part, ODE) and part.solver.adaptive:
            part.solver = Dopri5(rtol=1e-5, atol=1e-5)
    return transport


@every
def test_weights_survive_a_state_dict(case: TransportCase) -> None:
    first, other, (x, context) = case.make(seed=0), case.make(seed=1), case.draw(4)
    other.load_state_dict(first.state_dict())
    assert torch.equal(first.push(State(x), context).x, other.push(State(x), context).x)


@every
def test_wrong_points_are_refused_in_words(case: TransportCase) -> None:
    flow = Flow(Gaussian(case.event), case.make(), context_shape=case.context)
    _, context = case.draw(4)
    with pytest.raises(DomainError, match="must be floating"):
        flow.log_prob(torch.ones((4, *flow.event_shape), dtype=torch.long), context)
    with pytest.raises(ShapeError, match="must end in shape"):
        flow.log_prob(torch.zeros(4, 7), context)


@traceable
def test_log_prob_goes_through_vmap_and_jacrev(case: TransportCase) -> None:
    flow = Flow(Gaussian(case.event), case.make(), context_shape=case.context)
    x, context = case.draw(4)
    y = flow.push(x, context).detach()
    batch = flow.log_prob(y, context)
    if context is None:
        single = torch.func.vmap(flow.log_prob)(y)
    else:
        single = torch.func.vmap(lambda a, c: flow.log_prob(a, c))(y, context)
    assert torch.allclose(single, batch, rtol=0, atol=1e-10)
    given = None if context is None else context[0]
    score = torch.func.jacrev(lambda a: flow.log_prob(a, given))(y[0])
    points = y.clone().requires_grad_()
    (expected,) = torch.autograd.grad(flow.log_prob(points, context).sum(), points)
    assert torch.allclose(score, expected[0], rtol=0, atol=1e-9)


def shortened(case: TransportCase) -> Transport:
    """Take two steps of Euler, or one of the solver that a case is there for.

    What is traced is the same, only less often: a solver knows nothing of what it solves, and all
    of them step through the same loop.
    """
    transport = case.make()
    for part in transport.modules():
        if isinstance(part, ODE):
            kept = replace(part.solver, steps=1)  # type: ignore[call-arg]
            part.solver = kept if case.name in SOLVERS else Euler(2)
    return transport


@pytest.mark.unchecked
@compiled
def test_compiles_as_one_graph(case: TransportCase) -> None:
    torch.compiler.reset()
    flow = Flow(Gaussian(case.event), shortened(case), context_shape=case.context)
    x, context = case.draw(4)
    y = flow.push(x, context).detach()
    frames = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda a: flow.log_prob(a, context), fullgraph=True, backend=frames)
    assert torch.allclose(compiled(y), flow.log_prob(y, context), rtol=0, atol=1e-10)
    push = torch.compile(lambda a: flow.push(a, context), fullgraph=True, backend=frames)
    assert torch.allclose(push(x), flow.push(x, context), rtol=0, atol=1e-10)
    if list(flow.transport.modules())[1:]:
        assert frames.frame_count == 2


@pytest.mark.unchecked
@compiled
def test_push_exports_for_any_batch_size(case: TransportCase) -> None:
    from cflow.export import Sampler

    flow = Flow(Gaussian(case.event), shortened(case), context_shape=case.context)
    sampler = Sampler(flow).eval()
    x, context = case.draw(4)
    inputs = {"noise": x} if context is None else {"noise": x, "context": context}
    shapes = {name: {0: torch.export.Dim.DYNAMIC} for name in inputs}
    program = torch.export.export(sampler, (), inputs, dynamic_shapes=shapes).module()
    x, context = case.draw(9)
    inputs = {"noise": x} if context is None else {"noise": x, "context": context}
    assert torch.allclose(program(**inputs), flow.push(x, context), rtol=0, atol=1e-10)
