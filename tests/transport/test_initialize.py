"""Data-dependent layers: set once, by an explicit call, and saved with the weights."""

import pytest
import torch

from cflow import State, recipes
from cflow.errors import DomainError, ShapeError
from cflow.transport import (
    ActNorm,
    Chain,
    Channelwise,
    Inverse,
    Layer,
    MovingBatchNorm,
    Standardize,
    initialize,
)


def data() -> torch.Tensor:
    return 5 + 3 * torch.randn(500, 3)


@pytest.mark.parametrize("kind", [ActNorm, Standardize])
def test_fit_standardises_once_and_never_again(kind) -> None:
    layer, y = kind((3,)), data()
    assert torch.equal(layer.pull(State(y)).x, y)  # the identity before
    layer.fit(y)
    x = layer.pull(State(y)).x
    assert torch.allclose(x.mean(0), torch.zeros(3), atol=1e-12)
    assert torch.allclose(x.std(0), torch.ones(3))
    layer.fit(100 * y)
    assert torch.equal(layer.pull(State(y)).x, x)
    again = kind((3,))
    again.load_state_dict(layer.state_dict())
    again.fit(100 * y)
    assert torch.equal(again.pull(State(y)).x, x)


def test_a_constant_entry_keeps_its_scale() -> None:
    y = data()
    y[:, 1] = 7.0
    layer = Standardize((3,))
    layer.fit(y)
    assert torch.equal(layer.pull(State(y)).x[:, 1], torch.zeros(500))


def test_every_actnorm_of_a_flow_sees_the_batch_that_reaches_it() -> None:
    flow = recipes.realnvp(3, transforms=4, hidden_features=(8,))
    y = data()
    flow.initialize(y)
    norms = [m for m in flow.modules() if isinstance(m, ActNorm)]
    assert len(norms) == 4
    assert all(bool(m.fitted) for m in norms)
    x = flow.pull(y)
    assert torch.allclose(x.mean(0), torch.zeros(3), atol=1e-9)
    weights = {k: v.clone() for k, v in flow.state_dict().items()}
    flow.initialize(10 * y)
    assert all(torch.equal(v, weights[k]) for k, v in flow.state_dict().items())


def test_log_prob_and_sample_never_initialise() -> None:
    flow = recipes.realnvp(3, transforms=2, hidden_features=(8,)).train()
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    flow.log_prob(data())
    flow.sample(10)
    assert all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())


def test_what_cannot_be_set_is_refused_in_words() -> None:
    with pytest.raises(DomainError, match="inside Inverse cannot be set"):
        initialize(Chain(Inverse(ActNorm((3,)))), data())
    with pytest.raises(DomainError, match="at least 2 points"):
        ActNorm((3,)).fit(torch.zeros(1, 3))
    with pytest.raises(ShapeError, match=r"must end in shape \(3,\)"):
        ActNorm((3,)).fit(torch.zeros(5, 2))
    y = data()
    y[4, 1] = torch.nan
    with pytest.raises(DomainError, match=r"must be finite, got nan at index \(4, 1\)"):
        Standardize((3,)).fit(y)


def share(rank: int, path: str, shares: list[torch.Tensor]) -> None:
    """One of two processes: fit on a share of the batch, and leave the statistics in a file."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}/rendezvous", rank=rank, world_size=2
    )
    try:
        flow = Chain(ActNorm((3, 4, 4)), Channelwise(MovingBatchNorm((3,))))
        initialize(flow, shares[rank])
        spoiled = shares[rank].clone()
        if rank == 1:
            spoiled[0, 0, 0, 0] = torch.nan
        message = ""
        try:
            ActNorm((3, 4, 4)).fit(spoiled)
        except DomainError as error:
            message = str(error)
        torch.save((flow.state_dict(), message), f"{path}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_get_the_statistics_of_both_their_batches(tmp_path, forked) -> None:
    y = 5 + 3 * torch.randn(20, 3, 4, 4)
    shares = [y[:13], y[13:]]
    processes = [
        forked.Process(target=share, args=(rank, str(tmp_path), shares)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    alone = Chain(ActNorm((3, 4, 4)), Channelwise(MovingBatchNorm((3,))))
    initialize(alone, y)
    (first, of_other), (second, own) = (torch.load(tmp_path / f"{k}.pt") for k in range(2))
    for name, value in alone.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], value, rtol=0, atol=1e-12), name
    # Values that are not finite stop both, and each is told whose they are.
    assert "the points of another process are not" in of_other
    assert "must be finite, got nan at index (0, 0, 0, 0)" in own


def test_a_constant_that_rounds_keeps_its_scale() -> None:
    y = data().float()
    y[:, 1] = 0.1  # the mean of 500 of them is not 0.1 in float32
    layer = ActNorm((3,)).float()
    layer.fit(y)
    assert layer.log_scale[1] == 0


def test_what_the_pull_does_not_reach_is_refused_and_nothing_stays_open() -> None:
    class Aside(Layer):
        """Holds a layer that its pull does not use."""

        def __init__(self) -> None:
            super().__init__(event_dim=1)
            self.idle = ActNorm((3,))

        def _push(self, x, context, *, tracked):
            return x, x.new_zeros(()) if tracked else None

        def _pull(self, y, context, *, tracked):
            return y, y.new_zeros(()) if tracked else None

    aside = Aside()
    with pytest.raises(DomainError, match="did not reach 1 data-dependent layers"):
        initialize(Chain(aside, ActNorm((3,))), data())
    assert not aside.idle.fitting
