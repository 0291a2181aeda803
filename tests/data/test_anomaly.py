"""The anomaly tables: labels as counted, and splits that train on what they say."""

import pytest
import torch

from cflow.data import anomaly, find
from cflow.data.tables import TABLES
from cflow.errors import DomainError

COUNTS = {"ionosphere": (351, 32, 126), "magic": (19020, 10, 6688)}


@pytest.mark.parametrize("name", anomaly.NAMES)
def test_labels_are_counted_right(name: str) -> None:
    if find(TABLES[name].file) is None:
        pytest.skip(f"{name} is not on disk; name a folder that holds it in CFLOW_DATA")
    x, anomalous = anomaly.load(name)
    assert (*x.shape, int(anomalous.sum())) == COUNTS[name]


def numbered(n: int = 200, bad: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.stack([torch.arange(float(n)), torch.ones(n)], dim=1)
    return x, torch.randperm(n) < bad


def ranks(x: torch.Tensor, parts: anomaly.AnomalySplit) -> tuple[list[int], list[int]]:
    """Return the row numbers of the training and test part, from the standardised first column."""
    together = torch.cat([parts.train, parts.test])[:, 0]
    order = together.argsort().argsort() if len(together) == len(x) else None
    assert order is not None
    return order[: len(parts.train)].tolist(), order[len(parts.train) :].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_the_normal_protocol_trains_on_half_of_the_normal_rows_alone(seed: int) -> None:
    x, bad = numbered()
    parts = anomaly.split(x, bad, seed=seed)
    train, test = ranks(x, parts)
    assert len(train) == 70
    assert not bad[train].any()
    assert torch.equal(bad[test], parts.anomalous)
    assert int(parts.anomalous.sum()) == 60


def test_the_mixed_protocol_keeps_the_shares() -> None:
    x, bad = numbered()
    parts = anomaly.split(x, bad, protocol="mixed")
    train, test = ranks(x, parts)
    assert len(train) == 140
    assert int(bad[train].sum()) == 42
    assert torch.equal(bad[test], parts.anomalous)


def test_rows_are_standardised_by_the_training_rows_and_constants_are_centred() -> None:
    x, bad = numbered()
    train = anomaly.split(x, bad).train
    torch.testing.assert_close(train.mean(0), torch.zeros(2))
    torch.testing.assert_close(train.std(0, correction=0), torch.tensor([1.0, 0.0]))
    assert torch.equal(anomaly.split(x, bad).train, train)
    assert not torch.equal(anomaly.split(x, bad, seed=1).train, train)


def test_bad_input_is_refused() -> None:
    with pytest.raises(DomainError, match=r"no table 'wine'; known are"):
        anomaly.load("wine")
    with pytest.raises(DomainError, match="got 0 normal and 5 anomalous"):
        anomaly.split(torch.randn(5, 2), torch.ones(5, dtype=torch.bool))
