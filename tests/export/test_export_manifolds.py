"""Exported samplers on manifolds: standard noise in, points of the manifold out."""

from pathlib import Path

import pytest
import torch

from cflow import Flow, recipes
from cflow.base import ManifoldUniform
from cflow.export import Encoder, LogProb, Sampler, export_onnx, export_pt2, load_exported
from cflow.export.noise import from_noise, noise_law, to_noise
from cflow.field import (
    FourierTime,
    FrameField,
    MLPField,
    NetworkFlowMap,
    SpanTime,
    TangentField,
    TimedMLP,
)
from cflow.manifold import Quaternions, Rotations, Sphere, Torus
from cflow.ode import Euler
from cflow.transport import ODE, Leap

pytestmark = pytest.mark.unchecked
FORMATS = {"pt2": export_pt2, "onnx": export_onnx}
FLOWS = {
    "sphere": lambda: recipes.sphere_cnf(hidden_features=(8,), solver=Euler(1)),
    "sphere, exponential": lambda: recipes.sphere_cnf(
        hidden_features=(8,), solver=Euler(2), steps="exponential"
    ),
    "torus": lambda: recipes.torus_cnf(2, hidden_features=(8,), solver=Euler(1)),
    "quaternions": lambda: turning(Quaternions()),
}


def turning(space: Quaternions) -> Flow:
    field = FrameField(TimedMLP(4, 3, hidden_features=(8,)), space)
    return Flow(ManifoldUniform(space, 4), ODE(field, Euler(2), manifold=space))


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_draws_points_of_the_manifold(name: str, ending: str, tmp_path: Path) -> None:
    flow = FLOWS[name]().float().eval()
    path = tmp_path / f"sampler.{ending}"
    FORMATS[ending](Sampler(flow), path)
    law = noise_law(flow.base)
    draw = torch.randn if law == "Gaussian" else torch.rand
    noise = draw(7, *flow.event_shape, dtype=torch.float32)
    found = load_exported(path)(noise)
    space = flow.base.manifold  # type: ignore[attr-defined]
    assert space.check_point(found, atol=1e-5)[0]
    with torch.no_grad():
        assert torch.allclose(found, Sampler(flow)(noise), atol=1e-5)


def test_encoders_and_densities_on_the_torus(tmp_path: Path) -> None:
    flow = FLOWS["torus"]().float().eval()
    x = flow.sample(6)
    for module in (Encoder(flow), LogProb(flow)):
        path = tmp_path / f"{module.kind}.pt2"
        export_pt2(module, path)
        with torch.no_grad():
            assert torch.allclose(load_exported(path)(x), module(x), atol=1e-5)


def test_a_density_on_the_sphere(tmp_path: Path) -> None:
    flow = FLOWS["sphere"]().float().eval()
    x = flow.sample(6)
    export_pt2(LogProb(flow), tmp_path / "density.pt2")
    with torch.no_grad():
        found = load_exported(tmp_path / "density.pt2")(x)
        assert torch.allclose(found, flow.log_prob(x), atol=1e-5)


def test_rotations_and_leaps(tmp_path: Path) -> None:
    rotations = recipes.rotation_cnf(hidden_features=(8,), solver=Euler(1)).float().eval()
    time = SpanTime(FourierTime(2), FourierTime(2))
    net = TangentField(MLPField(3, hidden_features=(8,), time=time), Sphere())
    leap = Leap(NetworkFlowMap(net), manifold=Sphere())
    leaps = Flow(ManifoldUniform(Sphere(), 3), leap).float().eval()
    for space, flow in ((Rotations(), rotations), (Sphere(), leaps)):
        export_pt2(Sampler(flow), tmp_path / "sampler.pt2")
        noise = flow.base.sample((5,))
        found = load_exported(tmp_path / "sampler.pt2")(noise)
        assert space.check_point(found, atol=1e-5)[0]


def test_noise_of_uniform_laws() -> None:
    """Standard noise becomes the uniform law; points of the sphere are their own noise."""
    sphere, torus = ManifoldUniform(Sphere(), 3), ManifoldUniform(Torus(360.0), 2)
    assert (noise_law(sphere), noise_law(torus)) == ("Gaussian", "Uniform")
    x = torus.sample((5,))
    assert torch.allclose(from_noise(torus, to_noise(torus, x, None), None), x)
    x = sphere.sample((5,))
    assert torch.allclose(from_noise(sphere, to_noise(sphere, x, None), None), x)
    law = ManifoldUniform(Rotations(), (3, 3))
    assert noise_law(law) == "ManifoldUniform"
