"""Exported samplers of tokens: the law of `MixtureSteps`, and the same tokens in a file."""

import math
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Generator, Tensor, nn
from torch.nn import functional

from cflow import JumpFlow, recipes
from cflow.base import Categorical, EmpiricalTokens, MaskTokens, TokenBase, UniformTokens
from cflow.errors import DomainError, ShapeError
from cflow.export import (
    Encoder,
    ExportError,
    LogProb,
    Sampler,
    TokenSampler,
    describe,
    export_onnx,
    export_pt2,
    load_exported,
    low_precision,
)
from cflow.export.parity import examples, expect_parity
from cflow.export.token_sampler import found, middle
from cflow.export.tracing import _behind, _one_hot, _padded, traced
from cflow.field import PolynomialSchedule
from cflow.jump import (
    ClassifierFreePosterior,
    DirectRates,
    Draw,
    EulerJumps,
    MixturePath,
    MixtureSteps,
    NetworkPosterior,
    NoisingPath,
    Posterior,
    enumerate_states,
    state_index,
)

RUN = Path(__file__).parents[2] / "experiments" / "run_exported.py"
WRITERS = {"pt2": export_pt2, "onnx": export_onnx}
FALSE_ALARM = 1e-6  # probability that a right sampler fails each test
DATA = torch.tensor([0.3, 0.01, 0.04, 0.02, 0.3, 0.03, 0.05, 0.05, 0.2])  # of two tokens, 0 .. 2


def spread(flow: JumpFlow) -> JumpFlow:
    """Move a flow away from its start, where all tokens are alike, in float32."""
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return flow.float().eval()


class Coins(Posterior):
    """Predict each token by itself."""

    def logits(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.tensor([0.25, 0.75]).log().expand(*x.shape, 2)


def coins() -> JumpFlow:
    return JumpFlow(UniformTokens((2, 2), 2), Coins(2, MixturePath()))


class Labelled(nn.Module):
    """See tokens, their time and a label, 3 for none."""

    null = 3

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.labels = nn.Embedding(5, 8), nn.Embedding(4, 8)
        self.last = nn.Linear(8, 5)

    def forward(self, t: Tensor, x: Tensor, context: Tensor) -> Tensor:
        h = self.tokens(x)
        return self.last(
            (h + h.mean(1, keepdim=True) + (t[:, None] + self.labels(context))[:, None]).tanh()
        )


def labelled() -> JumpFlow:
    base = UniformTokens(4, 5)
    flow = JumpFlow(base, NetworkPosterior(Labelled(), base), context_shape=())
    return spread(flow).with_sampler(MixtureSteps(3))


def plain() -> JumpFlow:
    return spread(recipes.token_mlp(2, 3, hidden_features=(8,), steps=2))


# The law, on a space of two tokens where the posterior is known.


def posterior(base: TokenBase, t: float) -> Tensor:
    """Return p(x1 of each token | x_t) for all states, `(states ** 2, 2, 3)`."""
    x, ends = enumerate_states(base.states, 2), enumerate_states(3, 2)
    start = base.marginals().expand(2, -1)
    each = t * (x[:, None] == ends) + (1 - t) * start[torch.arange(2), x][:, None]
    joint = DATA * each.prod(-1) + 1e-300
    joint = joint / joint.sum(1, keepdim=True)
    return torch.einsum("xe,eiv->xiv", joint, functional.one_hot(ends, 3).to(joint))


def perfect(base: TokenBase, path: MixturePath | NoisingPath) -> JumpFlow:
    def network(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        return posterior(base, t[0].item() ** 2).log()[state_index(x, base.states)]

    rates = NetworkPosterior(network, base, MixturePath(PolynomialSchedule(2.0)))
    return JumpFlow(base, rates.along(path), sampler=MixtureSteps(3))


def law_of_steps(base: TokenBase, steps: int) -> Tensor:
    """Return the law of data after steps along kappa = t^2, by the matrix of each."""
    x = enumerate_states(base.states, 2)
    p = base.log_prob(x).exp()
    for t, later in pairwise(k / steps for k in range(steps + 1)):
        jump = 1 - (1 - later**2) / (1 - t**2)
        stay = functional.one_hot(x, base.states).to(p)
        to = functional.pad(posterior(base, t**2), (0, base.states - 3))
        moves = jump * to + (1 - jump) * stay
        if base.absorbing:
            moves = torch.where((x == 3)[..., None], moves, stay)
        p = p @ (moves[:, 0, :, None] * moves[:, 1, None, :]).flatten(1)
    return p


def p_value(x: Tensor, base: TokenBase, law: Tensor) -> float:
    counts = torch.bincount(state_index(x, base.states), minlength=len(law))
    assert not counts[law < 1e-12].any()
    kept = law >= 1e-12
    return float(chisquare(counts[kept].numpy(), (len(x) * law[kept]).numpy()).pvalue)


LAWS = {
    "masks": lambda: MaskTokens(2, 3),
    "uniform": lambda: UniformTokens(2, 3),
    "some masks": lambda: Categorical(2, torch.tensor([0.3, 0.2, 0.1, 0.4]), masked=True),
    "categorical": lambda: Categorical(2, torch.tensor([[0.7, 0.1, 0.2], [0.1, 0.3, 0.6]])),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_law_is_that_of_mixture_steps(name: str) -> None:
    base, schedule = LAWS[name](), PolynomialSchedule(2.0)
    path = NoisingPath.of(base, schedule) if name == "uniform" else MixturePath(schedule)
    flow, law, n = perfect(base, path), law_of_steps(base, 3), 100_000
    sampler = TokenSampler(flow)
    assert sampler.in_shape == (6 + (name != "masks"), 2)
    assert torch.allclose(sampler.chances[:2], torch.tensor([1 / 9, 3 / 8]), rtol=0, atol=1e-12)
    x = sampler(torch.rand(n, *sampler.in_shape))
    assert p_value(x, base, law) > FALSE_ALARM
    assert p_value(flow.sample(n), base, law) > FALSE_ALARM
    assert p_value(x, base, law_of_steps(base, 4)) < FALSE_ALARM, "the test would notice one step"


# Draws.


@pytest.mark.parametrize("draw", [Draw(), Draw(0.5), Draw(top_p=0.6), Draw(dtype=torch.float64)])
def test_one_step_from_masks_draws_as_the_sampler_does(draw: Draw) -> None:
    flow = plain()
    sampler = TokenSampler(flow, 1, sampler=MixtureSteps(draw=draw))
    noise = torch.rand(500, *sampler.in_shape, dtype=torch.float32)
    masks = flow.base.sample((500,))
    logits = flow.rates.logits(torch.zeros(500), masks).reshape(-1, 3)
    wanted = draw(logits, noise[:, 1].flatten()).reshape(500, 2)
    assert torch.equal(sampler(noise), wanted)
    assert wanted.unique().numel() > 1


def test_a_last_step_may_go_to_the_likeliest_token() -> None:
    flow = plain()
    sampler = TokenSampler(flow, 3, sampler=MixtureSteps(argmax=True))
    noise = torch.rand(200, *sampler.in_shape, dtype=torch.float32)
    noise[:, ::2] = 0.999  # no token jumps before
    logits = flow.rates.logits(torch.zeros(200), flow.base.sample((200,)))
    assert torch.equal(sampler(noise), logits.argmax(-1))
    noise[:, 0] = 0.0  # all do at once, by chance
    assert sampler(noise).unique(dim=0).shape[0] > 1


def test_numbers_rounded_up_to_one_are_numbers_like_others() -> None:
    below = torch.tensor([0.0, 0.2, 0.2, 0.5, 0.5])
    for u, index in ((0.0, 1), (0.4, 3), (0.999, 3), (1.0, 3)):  # never one of no share
        assert found(below, torch.tensor(u)) == index
    for flow in (plain(), labelled()):
        sampler = TokenSampler(flow)
        ones = torch.ones(2, *sampler.in_shape, dtype=torch.float32)
        x = sampler(ones, None if flow.context_shape is None else torch.tensor([0, 1]))
        assert ((x >= 0) & (x < flow.base.vocabulary)).all()


def test_examples_stand_in_the_middle_of_what_they_decide() -> None:
    below = torch.tensor([1.0, 1.00001, 3.0, 3.0, 4.0]).expand(4, -1)
    u = torch.tensor([0.1, 0.2500001, 0.7, 0.9])
    assert torch.allclose(middle(below, u), torch.tensor([0.125, 0.5, 0.5, 0.875]), atol=1e-5)
    flow = labelled()
    sampler, labels = TokenSampler(flow), torch.arange(3).repeat(50)
    noise = sampler.draw(150, labels, Generator().manual_seed(0))
    x = sampler(noise, labels)
    for moved in (noise - 4e-5, noise + 4e-5):
        moved[:, 1::2] = noise[:, 1::2]  # whether a token jumps knows of no rounding
        assert torch.equal(sampler(moved, labels), x)


def test_a_guide_and_a_condition_are_those_of_the_flow() -> None:
    flow, label = labelled(), torch.tensor(2)
    guided = ClassifierFreePosterior(flow.rates, 3.0, null=3)
    by_scale, by_hand = TokenSampler(flow, guidance=3.0), TokenSampler(flow.with_rates(guided))
    by_function = TokenSampler(
        flow, guidance=lambda rates: ClassifierFreePosterior(rates, 3.0, null=3)
    )
    fixed = TokenSampler(flow, guidance=3.0, context=label)
    noise = torch.rand(300, *fixed.in_shape, dtype=torch.float32)
    labels = label.expand(300)
    x = by_hand(noise, labels)
    assert torch.equal(by_scale(noise, labels), x)
    assert torch.equal(by_function(noise, labels), x)
    assert torch.equal(fixed(noise), x)
    assert not torch.equal(TokenSampler(flow)(noise, labels), x)
    assert (by_scale.facts()["guidance"], TokenSampler(flow).facts()["guidance"]) == (3.0, None)
    assert fixed.context_shape is None


# Files.


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenSampler, Path]:
    """Write one sampler, with labels, in both formats."""
    folder = tmp_path_factory.mktemp("tokens")
    torch.manual_seed(0)
    sampler = TokenSampler(labelled(), sampler=MixtureSteps(3, draw=Draw(0.8)))
    for ending, write in WRITERS.items():
        assert write(sampler, folder / f"s.{ending}", context=torch.arange(3)) == 0
    return sampler, folder


@pytest.mark.unchecked
@pytest.mark.parametrize("ending", WRITERS)
def test_a_file_gives_the_tokens_of_the_module(written, ending: str) -> None:
    sampler, folder = written
    file = load_exported(folder / f"s.{ending}")
    for n in (0, 1, 33):
        given = examples(sampler, n, torch.arange(3), seed=1)
        x = file(given["noise"], given["context"])
        assert x.dtype == torch.int64
        assert torch.equal(x, sampler(**given))
    assert x.unique().numel() > 2
    with pytest.raises(ShapeError, match=r"noise must have shape \(n, 7, 4\)"):
        file(torch.rand(5, 4), torch.zeros(5, dtype=torch.long))
    with pytest.raises(DomainError, match="needs a context"):
        file(torch.rand(5, 7, 4))


@pytest.mark.unchecked
def test_files_describe_themselves(written) -> None:
    found = describe(written[1] / "s.onnx")
    versions, parity, (steps,) = found.pop("versions"), found.pop("parity"), found.pop("solvers")
    assert steps.startswith("MixtureSteps(steps=3")
    assert "temperature=0.8" in steps
    assert "torch" in versions
    assert parity["found"] == 0
    assert found == {
        "cflow": 1,
        "kind": "sampler",
        "format": "onnx",
        "inputs": ["noise", "context"],
        "output": "samples",
        "event_shape": [7, 4],
        "data_shape": [4],
        "base": "Uniform",
        "base_shape": [4],
        "context_shape": [],
        "context_dtype": "int64",
        "dtype": "float32",
        "start": "UniformTokens",
        "vocabulary": 5,
        "steps": [3],
        "guidance": None,
        "likelihood": None,
    }


@pytest.mark.unchecked
def test_a_file_runs_without_cflow_and_tells_nothing_of_its_folder(written) -> None:
    sampler, folder = written
    given = examples(sampler, 9, torch.arange(3), seed=2)
    for name, value in given.items():
        np.save(folder / f"{name}.npy", value.numpy())
    words = ("s.onnx", "noise.npy", "out.npy", "context.npy")
    subprocess.run([sys.executable, "-I", RUN, *words], check=True, cwd=folder)
    assert np.array_equal(np.load(folder / "out.npy"), sampler(**given).numpy())
    with zipfile.ZipFile(folder / "s.pt2") as stream:
        whole = b"".join(map(stream.read, stream.namelist()))
    for content in (whole, (folder / "s.onnx").read_bytes()):
        assert b"samples" in content or b"noise" in content  # these are the bytes themselves
        assert str(RUN.parents[1]).encode() not in content
        assert b"rates.py" not in content
        assert b"class_hierarchy" not in content  # notes of torch.onnx


@pytest.mark.unchecked
def test_the_network_stands_once_in_a_graph_unless_a_loop_cannot_hold_it() -> None:
    def loops(flow: JumpFlow, steps: int) -> int:
        sampler = TokenSampler(flow, steps)
        program = traced("here", sampler, examples(sampler, 4, None))
        return [str(node.target) for node in program.graph.nodes].count("scan")

    assert loops(plain(), 50) == 1
    assert loops(coins(), 2) == 0, "its logits are a tensor that files cannot hold in a loop"


def test_what_stands_in_for_functions_that_fix_the_batch_does_what_they_do() -> None:
    x = torch.randint(4, (3, 2))
    assert torch.equal(_one_hot(x, 4), functional.one_hot(x, 4))
    for more in (0, 2):
        assert _behind((0, more), "constant")
        assert torch.equal(_padded(x, more, 7.0), functional.pad(x, (0, more), value=7))
    assert not any(
        (_behind((1, 2), "constant"), _behind((0, 2), "reflect"), _behind((0, -1), "constant"))
    )


def test_a_file_of_other_tokens_is_not_kept() -> None:
    sampler = TokenSampler(plain())
    right = lambda given: sampler(**given)
    assert expect_parity("here", sampler, right, 1e-5, None) == 0

    def wrong(given: dict[str, Tensor]) -> Tensor:
        x = sampler(**given)
        x[0, 0] = (x[0, 0] + 1) % 3
        return x

    with pytest.raises(ExportError, match=r"differs from the module by 0\.5"):  # one of two tokens
        expect_parity("here", sampler, wrong, 1e-5, None)


def test_refusals_say_what_to_do() -> None:
    flow, base = plain(), MaskTokens(2, 3)
    table = EmpiricalTokens(torch.tensor([[0, 1]]), 3)
    nothing = lambda t, x, context: torch.full((*x.shape, 3), math.nan)
    still = lambda t, x, context: torch.zeros(*x.shape, 4)
    uniform = lambda t, x, context: torch.zeros(*x.shape, 3)
    blind = TokenSampler(JumpFlow(base, NetworkPosterior(nothing, base)), 2)
    for call, words in (
        (lambda: TokenSampler(flow.with_sampler(EulerJumps(4))), "pass sampler=MixtureSteps"),
        (lambda: TokenSampler(flow, sampler=MixtureSteps(4, refresh=1.0)), "without a refresh"),
        (lambda: TokenSampler(JumpFlow(base, DirectRates(still, 4))), "needs a posterior"),
        (lambda: TokenSampler(JumpFlow(table, NetworkPosterior(uniform, table))), "independent"),
        (lambda: TokenSampler(flow, guidance=2.0), "nothing guides it"),
        (lambda: TokenSampler(flow, context=torch.tensor(1)), "unconditional"),
        (lambda: TokenSampler(flow, 0), "steps must be"),
        (lambda: blind.draw(3, None, Generator()), "logits at t=0 are not finite"),
        (lambda: low_precision(TokenSampler(flow)), "tokens have no spread"),
    ):
        with pytest.raises(DomainError, match=words):
            call()
    with pytest.raises(ShapeError, match="noise must end in shape"):
        TokenSampler(flow)(torch.rand(5, 2))


@pytest.mark.unchecked
def test_maps_and_densities_are_not_made_of_tokens() -> None:
    wrong: Any = plain()
    for kind in (Sampler, Encoder, LogProb):
        with pytest.raises(DomainError, match="their sampler is TokenSampler"):
            kind(wrong)


def test_a_posterior_of_ones_own_will_do() -> None:
    sampler = TokenSampler(coins(), 2)
    x = sampler(torch.rand(20_000, *sampler.in_shape))
    assert x.shape == (20_000, 2, 2)
    # the mean of 80000 coins: six standard errors, a right sampler fails once in 10^8 runs
    assert abs(x.double().mean().item() - 0.75) < 6 * math.sqrt(0.75 * 0.25 / 80_000)
