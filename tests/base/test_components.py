"""Mixtures of any laws, and laws side by side."""

import math
from typing import Any

import pytest
import torch

from cflow.base import (
    ClassConditional,
    Components,
    DiagonalGaussian,
    Gaussian,
    Joint,
    ManifoldUniform,
    Mixture,
    Poses,
    StudentT,
    VonMises,
    VonMisesFisher,
    WrappedNormal,
)
from cflow.errors import DomainError, ShapeError
from cflow.manifold import Euclidean, Product, RigidMotions, Rotations, Sphere, Torus


def test_components_of_normal_laws_are_the_mixture() -> None:
    mixture = Mixture(3, 2)
    mixture.logits.data = torch.randn(3)
    laws = [DiagonalGaussian(2) for _ in range(3)]
    for law, mean in zip(laws, mixture.mean.data, strict=True):
        law.mean.data = mean
    x = torch.randn(4, 5, 2)
    expected = mixture.log_prob(x)
    assert torch.allclose(Components(laws, logits=mixture.logits).log_prob(x), expected)


def test_draws_come_from_the_components_by_weight_and_in_the_order_of_picks() -> None:
    """Counts of 10,000 draws at 5 standard errors: false alarm 6e-7."""
    laws = [DiagonalGaussian(1) for _ in range(3)]
    for law, mean in zip(laws, (-100.0, 0.0, 100.0), strict=True):
        law.mean.data.fill_(mean)
    base = Components(laws, logits=torch.tensor([0.2, 0.5, 0.3]).log())
    x = base.sample((100, 100), generator=torch.Generator().manual_seed(0))
    found = (x / 100).round().squeeze(-1)
    for value, weight in ((-1, 0.2), (0, 0.5), (1, 0.3)):
        share = (found == value).double().mean().item()
        assert abs(share - weight) < 5 * math.sqrt(weight * (1 - weight) / 10_000)
    neighbours = (found[:, 1:] * found[:, :-1]).mean()  # independent: 0.1^2, no runs
    assert neighbours.abs() < 0.05


def test_a_context_reaches_every_component_by_rows() -> None:
    classes = ClassConditional(2, 1)
    classes.mean.data = torch.tensor([[-50.0], [50.0]])
    base = Components([classes, StudentT(1)], logits=torch.tensor([9.0, -9.0]))
    labels = torch.randint(2, (6, 7), generator=torch.Generator().manual_seed(0))
    x = base.sample((6, 7), labels, generator=torch.Generator().manual_seed(1))
    assert torch.equal((x.squeeze(-1) > 0).long(), labels)
    assert base.log_prob(x, labels).shape == (6, 7)
    one = base.sample((), torch.tensor(1))
    assert one.shape == (1,)


def test_weights_are_learned_or_not() -> None:
    laws = [VonMisesFisher(3), ManifoldUniform(Sphere(), 3)]
    base = Components(laws)
    base.log_prob(Sphere().projx(torch.randn(5, 3))).sum().backward()
    assert base.logits.grad is not None
    assert base.logits.grad.abs().sum() > 0
    assert "logits" not in dict(Components(laws, learned=False).named_parameters())


def test_bad_components_are_refused() -> None:
    with pytest.raises(DomainError, match="there must be one law at least"):
        Components([])
    with pytest.raises(ShapeError, match="laws must have one event shape"):
        Components([Gaussian(2), Gaussian(3)])
    with pytest.raises(ShapeError, match=r"logits must have shape \(1,\)"):
        Components([Gaussian(2)], logits=torch.zeros(2))
    with pytest.raises(DomainError, match="logits must be finite"):
        Components([Gaussian(2)], logits=torch.tensor([torch.nan]))


def test_joint_laws_add_up() -> None:
    laws = [VonMisesFisher(3, concentration=4.0), VonMises(2), Gaussian((2, 2)), Gaussian(())]
    base = Joint(*laws)
    x = base.sample((6, 5), generator=torch.Generator().manual_seed(0))
    assert x.shape == (6, 5, 10)
    parts = [x[..., :3], x[..., 3:5], x[..., 5:9].reshape(6, 5, 2, 2), x[..., 9]]
    expected = sum(law.log_prob(part) for law, part in zip(laws, parts, strict=True))
    assert torch.allclose(base.log_prob(x), expected)
    assert Sphere().check_point(parts[0], atol=1e-12)[0]
    assert Torus().check_point(parts[1])[0]
    assert base.log_prob(base.sample(())).shape == ()
    other = Joint(*[VonMisesFisher(3), VonMises(2), Gaussian((2, 2)), Gaussian(())])
    other.load_state_dict(base.state_dict())
    assert torch.equal(other.log_prob(x), base.log_prob(x))
    one = torch.func.vmap(torch.func.grad(base.log_prob))
    assert one(x[0].detach()).shape == (5, 10)


def test_weights_of_a_product_scale_its_volume() -> None:
    """A weight w makes distances sqrt(w) longer, as if the points were scaled by it."""
    product = Product((Sphere(), 3), (Euclidean(), 2), weights=(2.0, 9.0))
    base = Joint(ManifoldUniform(Sphere(), 3), WrappedNormal(Euclidean(), 2), manifold=product)
    x = base.sample((7,))
    stretched = WrappedNormal(Euclidean(), 2, scale=3.0).log_prob(3 * x[:, 3:])
    expected = -math.log(4 * math.pi * 2) + stretched
    assert torch.allclose(base.log_prob(x), expected)


def test_joint_uniform_laws_are_the_uniform_law_of_the_product() -> None:
    space = Product((Sphere(), 3), (Rotations(), (3, 3)), (Torus(), 2), weights=(2.0, 0.5, 3.0))
    parts = [ManifoldUniform(part, shape) for part, shape in space.parts]
    joint, whole = Joint(*parts, manifold=space), ManifoldUniform(space, 14)
    x = joint.sample((5,))
    assert space.check_point(x, atol=1e-9)[0]
    assert torch.allclose(joint.log_prob(x), whole.log_prob(x))
    with pytest.raises(DomainError, match="has no finite volume"):
        ManifoldUniform(Product((Sphere(), 3), (Euclidean(), 2)), 5)


def test_poses_are_rotations_beside_translations() -> None:
    space = RigidMotions(rotation_weight=2.0, translation_weight=0.25)
    rotation = WrappedNormal(Rotations(), (3, 3), scale=0.5)
    base = Poses(rotation, DiagonalGaussian(3), manifold=space)
    x = base.sample((4, 2))
    assert space.check_point(x, atol=1e-9)[0]
    joint = Product((Rotations(), (3, 3)), (Euclidean(), 3), weights=(2.0, 0.25))
    flat = joint.join([x[..., :3, :3], x[..., :3, 3]])
    expected = Joint(rotation, DiagonalGaussian(3), manifold=joint).log_prob(flat)
    assert torch.allclose(base.log_prob(x), expected)
    assert base.sample(()).shape == (4, 4)
    with pytest.raises(ShapeError, match=r"got \(4,\) and \(3,\)"):
        Poses(Gaussian(4), Gaussian(3))


def test_bad_joints_are_refused() -> None:
    with pytest.raises(DomainError, match="there must be one law at least"):
        Joint()
    product = Product((Sphere(), 3), (Euclidean(), 2))
    with pytest.raises(ShapeError, match="give one law for each part"):
        Joint(ManifoldUniform(Sphere(), 3), manifold=product)
    with pytest.raises(ShapeError, match=r"must end in shape \(5,\)"):
        Joint(Gaussian(3), Gaussian(2)).log_prob(torch.zeros(4, 4))


@pytest.mark.unchecked
def test_a_product_in_the_place_of_a_law_is_refused() -> None:
    product: Any = Product((Euclidean(), 1))
    with pytest.raises(DomainError, match="law 0 must be a base, got Product"):
        Joint(product, Gaussian(1))
