"""Pools of pairs: every target once, one result for all worker counts, training that resumes."""

import threading
import time
from dataclasses import dataclass

import pytest
import torch
from scipy.stats import chisquare
from torch import Generator, Tensor

from cflow.base import Gaussian
from cflow.errors import DomainError, ShapeError, SolverError
from cflow.field import MLPField
from cflow.matching import (
    Coupling,
    IndependentCoupling,
    LinearPath,
    OTCoupling,
    PairedCoupling,
    PairPool,
    Pairs,
    matching,
)
from cflow.matching.ahead import ahead
from cflow.train import BatchSource, Trainer


def take(pool: PairPool, count: int, batch: int, *, seed: int = 0, start: int = 0) -> list:
    source = pool.batches(batch, seed=seed, start=start)
    found = [next(source) for _ in range(count)]
    source.close()
    return found


def same(a: list, b: list) -> bool:
    pairs = zip(a, b, strict=True)
    return all(torch.equal(s, t) for p, q in pairs for s, t in zip(p, q, strict=True))


@dataclass(frozen=True)
class Given(Coupling):
    """Return the pairs it was given, and write down what it saw."""

    pairs: Pairs
    seen: dict

    def __call__(
        self, x0, x1, context=None, *, source_context=None, weights=None, generator=None
    ) -> Pairs:
        self.seen.update(x0=x0, x1=x1, context=context, source_context=source_context)
        return self.pairs


def test_every_target_of_a_pool_is_used_once_and_every_example_once_an_epoch() -> None:
    """Neither the batch divides the pool nor the pool the data."""
    data = (torch.randn(90, 2), torch.arange(90))
    labels = torch.cat([b[2] for b in take(PairPool(data, OTCoupling(), pool=40), 36, 10)])
    assert len(labels[:40].unique()) == 40
    assert len(labels[40:80].unique()) == 40  # the third joins two epochs: 90 = 40 + 40 + 10
    counts = torch.bincount(labels, minlength=90)
    assert counts.tolist() == [4] * 90
    pools = [b[2].sort()[0] for b in take(PairPool(data, OTCoupling(), pool=30), 6, 30)]
    assert not all(map(torch.equal, pools[:3], pools[3:]))  # each epoch has an order of its own
    odd = torch.cat([b[2] for b in take(PairPool(data, OTCoupling(), pool=40), 51, 7)])
    assert torch.equal(odd, labels[:357])


def test_the_pairs_of_a_pool_are_its_optimal_ones() -> None:
    """In one dimension the optimal plan sorts both; contexts of any number follow."""
    x = torch.randn(64, 1)
    pool = PairPool((x, x.clone(), x.double().square()), OTCoupling(), pool=64)
    x0, x1, c, squares = (torch.cat(part) for part in zip(*take(pool, 4, 16), strict=True))
    assert torch.equal(x1, c)
    assert torch.equal(x1.double().square(), squares)
    order = x1[:, 0].argsort()
    assert bool((x0[order, 0].diff() > 0).all())
    assert not bool((x1[:, 0].diff() > 0).all())  # batches are random parts of the pool


@pytest.mark.parametrize("source", [None, "base", "function", "points"])
def test_one_seed_gives_one_result_for_all_worker_counts(source) -> None:
    laws = {
        None: None,
        "base": Gaussian(2),
        "function": lambda n, generator: torch.rand(n, 2, generator=generator),
        "points": torch.randn(55, 2),
    }
    pool = lambda workers: PairPool(
        (torch.randn(70, 2, generator=Generator().manual_seed(1)), torch.arange(70)),
        OTCoupling(),
        source=laws[source],
        pool=32,
        workers=workers,
    )
    inline = take(pool(0), 12, 12)
    torch.manual_seed(1234)  # the global generator plays no part
    assert same(inline, take(pool(0), 12, 12))
    assert same(inline, take(pool(1), 12, 12))
    assert same(inline, take(pool(2), 12, 12))
    assert not same(inline, take(pool(0), 12, 12, seed=1))
    for start in (1, 3, 8):  # within a chunk, across one, and chunks later
        assert same(inline[start:], take(pool(2), 12 - start, 12, start=start))


def test_seeds_and_chunks_have_streams_of_their_own() -> None:
    """Normal sources of other chunks, other seeds and the seed itself are uncorrelated."""
    pool = PairPool(torch.zeros(1000, 1), IndependentCoupling(), pool=1000)
    draws = [take(pool, 1, 1000, seed=s, start=k)[0][0].sort(0)[0] for s in (0, 1) for k in (0, 1)]
    draws.append(torch.randn(1000, 1, generator=Generator().manual_seed(0)).sort(0)[0])
    assert all(not torch.equal(a, b) for k, a in enumerate(draws) for b in draws[:k])


def test_given_sources_are_used_once_a_round_and_show_their_context() -> None:
    seen = {}
    points, own = torch.arange(30.0)[:, None], torch.arange(30)
    index = torch.arange(20)
    pool = PairPool(
        (torch.randn(20, 1), torch.arange(20)),
        Given(Pairs(index, index), seen),
        source=(points, own),
        pool=20,
    )
    x0 = torch.cat([b[0] for b in take(pool, 6, 10)])
    assert torch.bincount(x0[:, 0].long(), minlength=30).tolist() == [2] * 30
    assert torch.equal(seen["x0"][:, 0], seen["source_context"].to(x0))
    assert seen["context"].shape == (20,)


def test_sources_are_the_law_they_were_drawn_from() -> None:
    pool = PairPool(torch.zeros(1, 2), IndependentCoupling(), source=Gaussian(2), pool=20_000)
    x0 = take(pool, 1, 20_000)[0][0]
    assert x0.mean().abs() < 6 / 40_000**0.5  # false alarm about 2e-9
    assert (x0.var() - 1).abs() < 6 * (2 / 40_000) ** 0.5
    float32 = PairPool(torch.zeros(4, 3, 2, dtype=torch.float32), IndependentCoupling(), pool=4)
    x0, x1 = take(float32, 1, 2)[0]
    assert x0.dtype == x1.dtype == torch.float32
    assert x0.shape == x1.shape == (2, 3, 2)


def test_weights_become_frequencies_and_few_pairs_are_repeated_evenly() -> None:
    i = torch.arange(4)
    data = torch.arange(8.0)[:, None]
    heavy = Pairs(i, i, torch.tensor([0.0, 0.5, 1.0, 2.5]))
    counts = torch.zeros(4)
    seen: dict = {}
    for seed in range(60):
        pool = PairPool(data, Given(heavy, seen), source=data, pool=8)
        x0, _ = take(pool, 1, 8, seed=seed)[0]
        found = (x0 == seen["x0"][:4, 0]).sum(0)
        expected = 8 * torch.tensor([0.0, 0.125, 0.25, 0.625])
        assert bool(((found - expected).abs() < 1).all())
        counts += found
    assert counts.tolist() == [0, 60, 120, 300]
    few = Pairs(i[:3], i[:3])
    used = torch.zeros(3)
    for seed in range(300):
        pool = PairPool(data, Given(few, seen), source=data, pool=8)
        x0, _ = take(pool, 1, 8, seed=seed)[0]
        found = (x0 == seen["x0"][:3, 0]).sum(0)
        assert sorted(found.tolist()) == [2, 3, 3]
        used += (found == 2).double()
    assert chisquare(used.numpy()).pvalue > 1e-6


def test_the_whole_data_set_goes_to_a_coupling_that_wants_it() -> None:
    seen = {}
    data = (torch.arange(30.0)[:, None], torch.arange(30))
    index = torch.arange(8)
    pool = PairPool(data, Given(Pairs(index, 29 - index), seen), pool=8, whole=True)
    _, x1, label = take(pool, 1, 8)[0]
    assert torch.equal(seen["x1"], data[0])
    assert seen["x0"].shape == (8, 1)
    assert sorted(label.tolist()) == list(range(22, 30))
    assert torch.equal(x1[:, 0], label.to(x1))


def threads() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("cflow-ahead")}


def test_an_error_of_a_worker_is_raised_with_its_own_text_and_leaves_no_thread() -> None:
    class Fails(Coupling):
        def __call__(
            self, x0, x1, context=None, *, source_context=None, weights=None, generator=None
        ) -> Pairs:
            raise SolverError("the plan did not converge, says the test")

    for workers in (0, 2):
        pool = PairPool(torch.randn(20, 2), Fails(), pool=10, workers=workers)
        trainer = Trainer(MLPField(2), loss, steps=3, batch=5, progress=False)
        with pytest.raises(SolverError, match="did not converge, says the test"):
            trainer.fit(pool)
        assert not threads()


def test_threads_work_ahead_and_end_with_the_iterator() -> None:
    begun = []

    def make(k: int) -> int:
        begun.append(k)
        return k

    source = ahead(make, workers=2)
    assert not begun  # nothing starts before something is asked for
    assert next(source) == 0
    deadline = time.monotonic() + 10
    while len(begun) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert begun == [0, 1, 2]  # two ahead of the one in use, no more
    assert threads()
    source.close()
    assert not threads()
    inline = ahead(make, start=7)
    assert next(inline) == 7
    assert begun[-1] == 7
    assert len(begun) == 4


def test_two_workers_work_at_once() -> None:
    meeting = threading.Barrier(2)  # breaks, with an error, if one has to wait for the other

    def make(k: int) -> int:
        meeting.wait(timeout=20)
        return k

    source = ahead(make, workers=2)
    assert next(source) == 0
    meeting.abort()
    source.close()


def loss(model: MLPField, x0: Tensor, x1: Tensor, *, generator: Generator) -> Tensor:
    return matching(model, LinearPath(), PairedCoupling(), x1, x0=x0, generator=generator)


def weights(field: MLPField) -> list[Tensor]:
    return [p.detach().clone() for p in field.parameters()]


def test_a_training_on_a_pool_resumes_bit_for_bit(tmp_path) -> None:
    data = torch.randn(100, 2) + 3
    start = MLPField(2, hidden_features=(8,)).state_dict()

    def run(folder, workers: int, stop: int | None = None) -> list[Tensor]:
        field = MLPField(2, hidden_features=(8,))
        field.load_state_dict(start)
        calls = 0

        def interrupted(*args, generator: Generator) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt
            return loss(*args, generator=generator)

        pool = PairPool(data, OTCoupling(), pool=30, workers=workers)
        Trainer(
            field, interrupted, steps=30, batch=16, folder=folder, checkpoint_every=7, lr=0.01,
            validate_every=10, progress=False,
        ).fit(pool, PairPool(data, OTCoupling(), pool=30))  # fmt: skip
        return weights(field)

    whole = run(tmp_path / "whole", workers=0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", workers=2, stop=25)  # validations call the loss as well
    kept = torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)
    assert 7 <= kept["step"] < 30
    assert not threads()
    resumed = run(tmp_path / "cut", workers=1)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(whole, start.values(), strict=False))


def test_a_training_draws_no_batch_that_it_does_not_use() -> None:
    class Counted:
        drawn = 0

        def __len__(self) -> int:
            return 8

        def batches(self, batch: int, *, seed: int, start: int = 0):
            while True:
                Counted.drawn += 1
                yield torch.zeros(batch, 2), torch.zeros(batch, 2)

    source = Counted()
    assert isinstance(source, BatchSource)
    assert isinstance(PairPool(torch.zeros(1, 1), OTCoupling()), BatchSource)
    Trainer(MLPField(2), loss, steps=3, batch=4, progress=False).fit(source)
    assert Counted.drawn == 3
    result = Trainer(MLPField(2), loss, steps=2, batch=4, progress=False).fit(source, source)
    assert Counted.drawn == 3 + 2 + 2  # an epoch of 8 is two batches
    assert result.best_value is not None


def test_a_source_that_ends_is_an_error_in_words() -> None:
    class Ends:
        def __len__(self) -> int:
            return 4

        def batches(self, batch: int, *, seed: int, start: int = 0):
            yield torch.zeros(batch, 2), torch.zeros(batch, 2)

    with pytest.raises(DomainError, match=r"Ends\.batches came to an end"):
        Trainer(MLPField(2), loss, steps=3, batch=4, progress=False).fit(Ends())


def test_bad_pools_are_refused_in_words() -> None:
    x = torch.randn(10, 2)
    bad = x.clone()
    bad[3, 1] = torch.nan
    with pytest.raises(DomainError, match=r"PairPool: data must be finite, got nan at index \(3"):
        PairPool(bad, OTCoupling())
    with pytest.raises(DomainError, match="source must be finite"):
        PairPool(x, OTCoupling(), source=bad)
    with pytest.raises(ShapeError, match=r"tensors of data need one leading axis of one length"):
        PairPool((x, torch.zeros(9)), OTCoupling())
    with pytest.raises(ShapeError, match="PairPool: data is empty"):
        PairPool(x[:0], OTCoupling())
    with pytest.raises(DomainError, match="points must be floating"):
        PairPool(torch.arange(3), OTCoupling())
    with pytest.raises(DomainError, match="pool must be positive"):
        PairPool(x, OTCoupling(), pool=0)
    with pytest.raises(DomainError, match="workers must be 0 or more, got -1"):
        PairPool(x, OTCoupling(), workers=-1)
    with pytest.raises(DomainError, match="PairedCoupling needs no solve"):
        PairPool(x, PairedCoupling())
    with pytest.raises(DomainError, match="batch must be positive"):
        next(PairPool(x, OTCoupling()).batches(0, seed=0))
    with pytest.raises(DomainError, match="start must be 0 or more"):
        next(PairPool(x, OTCoupling()).batches(1, seed=0, start=-1))
    wrong = PairPool(x, OTCoupling(), source=lambda n, generator: torch.zeros(n, 3), pool=4)
    with pytest.raises(ShapeError, match=r"4 sources must have the shape of the targets, \(4, 2\)"):
        take(wrong, 1, 2)
    none = torch.zeros(0, dtype=torch.long)
    with pytest.raises(SolverError, match="left no pair in a pool"):
        take(PairPool(x, Given(Pairs(none, none), {}), pool=4), 1, 2)
