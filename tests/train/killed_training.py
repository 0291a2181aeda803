"""A training that a test kills and resumes, in processes of its own."""

import time

import torch

from cflow import Flow, recipes
from cflow.matching import LinearPath, OTCoupling, matching
from cflow.train import CosineDecay, Trainer


def main(folder: str, *, slow: bool) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    flow = recipes.cnf(2, hidden_features=(32, 32), dropout=0.1)
    data = torch.randn(500, 2, generator=torch.Generator().manual_seed(1)) + 2

    def loss(model: Flow, x: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
        if slow:
            time.sleep(0.01)
        return matching(model.transport.field, LinearPath(), OTCoupling(), x, generator=generator)

    Trainer(
        flow,
        loss,
        steps=200,
        batch=64,
        ema=0.99,
        clip=1.0,
        schedule=CosineDecay(warmup=10),
        folder=folder,
        checkpoint_every=7,
        validate_every=25,
        progress=False,
    ).fit(data[100:], data[:100])
    flow.save(f"{folder}/flow.safetensors")
