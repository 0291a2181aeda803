"""Flows of tokens on the command line: looked at, drawn from, bounded, exported."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cflow import recipes

pytestmark = [pytest.mark.unchecked, pytest.mark.usefixtures("in_an_empty_folder")]  # it exports


@pytest.fixture
def tokens() -> str:
    flow = recipes.token_mlp(2, 5, hidden_features=(8,), steps=4)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    flow.save("tokens.safetensors")
    return "tokens.safetensors"


@pytest.fixture
def labelled() -> str:
    flow = recipes.token_transformer(3, 5, 4, width=8, layers=1, heads=2, steps=2)
    flow.save("labelled.safetensors")
    return "labelled.safetensors"


def test_a_file_of_tokens_is_told_drawn_from_and_bounded(cflow, tokens: str) -> None:
    words = ("token_mlp(2, 5", "base", "MaskTokens", "vocabulary", "bound", "MixtureSteps(steps=4")
    cflow("info", tokens).expect_success(*words)
    draw = ("sample", tokens, "-n", 30, "--steps", 3, "--batch", 7)
    cflow(*draw, "-o", "a.npy").expect_success("30 samples of shape (2,)")
    x = np.load("a.npy")
    assert x.dtype == np.int64
    assert x.shape == (30, 2)
    assert ((x >= 0) & (x < 5)).all()
    bound = cflow("log-prob", tokens, "a.npy", "-o", "values.npy")
    bound.expect_success("nats", "bits/dim", "over 30 points (a lower bound")
    assert np.load("values.npy").shape == (30,)
    cflow(*draw, "-o", "b.npy").expect_success()
    assert np.array_equal(np.load("b.npy"), x), "a seed decides"


def test_labels_and_guidance(cflow, labelled: str) -> None:
    cflow("info", labelled).expect_success("labels 0 .. 3")
    drawn = cflow("sample", labelled, "--context", 2, "--guidance", 1.5, "-n", 5)
    drawn.expect_success("5 samples of shape (3,)")
    cflow("sample", labelled).expect_refusal("needs labels 0 .. 3")
    cflow("sample", labelled, "--context", 4).expect_refusal("labels must lie in 0 .. 3, got 4")


def test_an_exported_sampler_draws_tokens_too(cflow, tokens: str) -> None:
    cflow("export", tokens, "--steps", 2).expect_success("sampler: ", "0.0e+00 off the flow")
    cflow("info", "sampler_2.onnx").expect_success("vocabulary", "MaskTokens", "Uniform")
    cflow("sample", "sampler_2.onnx", "-n", 9).expect_success("9 samples of shape (2,)")
    assert np.load("samples.npy").dtype == np.int64


def test_what_tokens_have_not_is_refused_in_one_line(cflow, tokens: str) -> None:
    np.save("x.npy", np.array([[0, 1], [5, 2]]))
    np.save("points.npy", np.zeros((3, 2)))
    for words, said in (
        (("train", "token_mlp", "x.npy"), "token_mlp makes tokens"),
        (("log-prob", tokens, "x.npy"), "must not hold the mask, 5, found at index (1, 0)"),
        (("log-prob", tokens, "points.npy"), "tokens must be integers"),
        (("log-prob", tokens, "x.npy", "--project"), "this flow has none"),
        (("sample", tokens, "--solver", "heun", "--steps", 2), "leave out --solver"),
        (("sample", tokens, "--noise", "points.npy"), "leave out --solver and --noise"),
        (("sample", tokens, "--steps", 0), "steps must be"),
        (("sample", tokens, "--guidance", 2), "unconditional"),
        (("sample", tokens, "--context", 2), "unconditional"),
        (("export", tokens, "--what", "log-prob"), "there is a sampler alone"),
        (("export", tokens, "--steps", 2, "--calibrate"), "there is a sampler alone"),
        (("export", tokens, "--guidance", 2), "nothing guides it"),
    ):
        cflow(*words).expect_refusal(said)
    Path("tokens.safetensors").write_bytes(b"not a flow")
    cflow("sample", tokens).expect_refusal("cannot read tokens.safetensors")
