"""Data-dependent layers: set once, by an explicit call, and saved with the weights."""

import pytest
import torch

from cflow import State, recipes
from cflow.errors import DomainError, ShapeError
from cflow.transport import ActNorm, Chain, Inverse, Standardize, initialize


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
