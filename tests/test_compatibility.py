"""The compatibility table: cells are measured, reasons are the errors, no class is missing."""

import inspect
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cflow import Flow, recipes, transport
from cflow.base import Gaussian
from cflow.transport import Layer, Transport, UnivariateMap
from experiments.compatibility import COLUMNS, Settings, cell, main, measure, read, reason, settled
from experiments.compatibility_rows import ROWS, Row

pytestmark = pytest.mark.unchecked


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


class Wilful(Layer):
    """Looks at the values of its points to decide which way to go."""

    def __init__(self) -> None:
        super().__init__(event_dim=0)

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        return (2 * x if bool(x.sum() > 0) else 2 * x + 0), torch.full_like(x, 2.0).log()

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        return (y / 2 if bool(y.sum() > 0) else y / 2 + 0), torch.full_like(y, 0.5).log()


class Forgetful(Layer):
    """Differs by one part in ten once it is compiled or exported."""

    def __init__(self) -> None:
        super().__init__(event_dim=0)

    def _push(
        self, x: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        size = 1.1 if torch.compiler.is_compiling() else 1.0
        return size * x, torch.zeros_like(x)

    def _pull(
        self, y: Tensor, context: Tensor | None, *, tracked: bool
    ) -> tuple[Tensor, Tensor | None]:
        return y, torch.zeros_like(y)


def toy(layer: Callable[[], Layer]) -> Row:
    return Row("toy", "Layers", lambda: Flow(Gaussian(3), layer()))


def test_three_rows_are_measured_kept_and_written(tmp_path: Path, capsys) -> None:
    path = tmp_path / "page.md"
    found = main(Settings(out=path, smoke=True))
    assert list(found) == ["realnvp", "Permutation", "Rotation"]
    words = found["Rotation"]["ONNX `push`"]
    assert words == "matrix exponential has no ONNX operator"
    for name, cells in found.items():
        assert all(float(cell) < 1e-5 for cell in cells.values() if cell != words), (name, cells)
    page = path.read_text()
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines] == list(found)
    assert all(line.count("|") == len(COLUMNS) + 2 and "|  |" not in line for line in lines)
    capsys.readouterr()
    again = main(Settings(out=path, smoke=True, resume=True))
    assert again == found
    assert not capsys.readouterr().out, "rows that are there are not measured again"


def test_what_cannot_be_traced_says_why() -> None:
    assert set(measure(toy(Wilful)).values()) - {"0"} == {"branches on the values of a tensor"}
    cells = measure(toy(Wilful))
    assert [column for column, words in cells.items() if words == "0"] == ["jacrev `log_prob`"]


def test_a_difference_is_seen() -> None:
    torch.compiler.reset()
    assert 0.05 < float(cell(COLUMNS["compile `push`"], toy(Forgetful))) < 0.2


def test_a_cell_that_takes_too_long_says_so_and_may_try_again_with_more_time() -> None:
    def dawdle(flow: Flow, row: Row) -> float:
        end = time.process_time() + 10
        while time.process_time() < end:
            pass
        return 0.0

    words = cell(dawdle, toy(Forgetful), limit=1)
    assert words == "not within 1 s"
    assert settled({"a": words, "b": "0"}, 1) == {"a": words, "b": "0"}
    assert settled({"a": words, "b": "0"}, 2) == {"b": "0"}


def test_an_unknown_error_speaks_for_itself() -> None:
    assert reason(KeyError("wi|dth\nsecond line")) == "KeyError: 'wi dth\\nsecond line'"
    assert reason(ValueError("x" * 500)).endswith(" ...")


def test_no_recipe_layer_or_map_is_missing() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    tokens = {"token_mlp", "token_transformer"}  # no transports; docs/exports.md has them
    wanted = set(recipes.__all__) - {"load", "recipe"} - tokens
    maps = set()
    for name in transport.__all__:
        part = getattr(transport, name)
        if not inspect.isclass(part) or inspect.isabstract(part):
            continue
        if issubclass(part, Transport):
            wanted.add(name)
        elif issubclass(part, UnivariateMap):
            maps.add(name)
    assert wanted <= {name.split(",")[0] for name in names}
    for name in maps:
        assert {f"{name} in a coupling layer", f"{name} in an autoregressive layer"} <= set(names)


def test_the_page_has_every_row_and_only_those() -> None:
    page = (Path(__file__).parents[1] / "docs" / "compatibility.md").read_text()
    assert list(read(page)) == [row.name for row in ROWS]
