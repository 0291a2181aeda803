"""Patches: what goes where."""

import pytest
import torch

from cflow import State
from cflow.errors import DomainError, ShapeError
from cflow.transport import Patches


@pytest.mark.parametrize("shape", [(4, 6), (3, 4, 6), (1, 2, 2)], ids=str)
@pytest.mark.parametrize("batch", [(), (2, 3), (0,)], ids=str)
def test_tokens_are_the_patches_row_by_row(shape: tuple[int, ...], batch: tuple[int, ...]) -> None:
    layer, image = Patches(shape, 2), torch.randn(*batch, *shape)
    tokens = layer.pull(State(image)).x
    assert tokens.shape == (*batch, *layer.sequence)
    assert layer.out_shape(layer.sequence) == shape
    assert torch.equal(layer.push(State(tokens)).x, image)
    planes = image if len(shape) == 3 else image[..., None, :, :]
    columns = shape[-1] // 2
    for t in range(layer.sequence[0]):
        row, column = 2 * (t // columns), 2 * (t % columns)
        expected = planes[..., row : row + 2, column : column + 2].flatten(-3)
        assert torch.equal(tokens[..., t, :], expected)


def test_bad_shapes_are_refused_in_words() -> None:
    with pytest.raises(DomainError, match="patch must divide height and width"):
        Patches((4, 6), 4)
    with pytest.raises(ShapeError, match="shape must be"):
        Patches((16,), 4)
    layer = Patches((4, 6), 2)
    with pytest.raises(ShapeError, match="expected event shape"):
        layer.out_shape((4, 6))
    with pytest.raises(ShapeError, match="y must end in shape"):
        layer.pull(State(torch.zeros(5, 6, 4)))
