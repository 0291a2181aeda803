"""What was decided about the layout, held by a test: floors, sizes, names, the face."""

import ast
import inspect
from pathlib import Path

import pytest

import cflow

ROOT = Path(cflow.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# A room may import from lower floors only; rooms of one floor do not know each other, save where
# the second table says so.
FLOORS = {
    "state": 1, "errors": 1, "typing": 1, "nets": 1, "archive": 1, "data": 1,
    "ode": 2, "field": 2, "manifold": 2,
    "transport": 3, "base": 3,
    "flow": 4, "distribution": 4, "likelihood": 4, "matching": 4, "samples": 4,
    "importance": 4, "variational": 4, "jump": 4,
    "recipes": 5, "train": 5, "export": 5, "plots": 5, "metrics": 5, "testing": 5,
    "cli": 6,
}  # fmt: skip
NEIGHBOURS = {
    ("archive", "errors"),
    ("base", "errors"),
    ("nets", "errors"),
    ("data", "errors"),
    ("data", "typing"),
    ("flow", "distribution"),
    ("distribution", "flow"),  # for type checkers only
    ("likelihood", "flow"),
    ("matching", "flow"),  # reflow: pairs that a flow makes
    ("samples", "flow"),
    ("importance", "flow"),
    ("variational", "flow"),
    ("jump", "flow"),
    ("jump", "matching"),  # path points, couplings, time laws
    ("jump", "samples"),
    ("export", "metrics"),
}
FORBIDDEN = {"utils", "util", "misc", "common", "helpers", "helper"}
FACE = [
    "Flow", "JumpFlow", "State", "base", "errors", "field", "jump", "load", "manifold", "matching",
    "metrics", "nll", "ode", "recipes", "tracked", "train", "transport",
]  # fmt: skip


def room(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Return the rooms of cflow that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "cflow":
                found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("cflow.")}
    return found


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in FILES} - {"__init__"} == FLOORS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_point_down(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        return
    for there in imports(path) - {here}:
        assert FLOORS[there] < FLOORS[here] or (here, there) in NEIGHBOURS, (here, there)


def test_the_solvers_can_be_used_alone() -> None:
    for path in (ROOT / "ode").glob("*.py"):
        assert imports(path) <= {"ode", "errors"}, path


def test_only_the_centre_sees_field_solver_and_manifold_together() -> None:
    """The two transports along a field, by small steps and by leaps; recipes put parts together."""
    all_three, below = {"field", "ode", "manifold"}, FLOORS["recipes"]
    files = (p for p in FILES if FLOORS.get(room(p), 0) < below and all_three <= imports(p))
    found = {p.relative_to(ROOT).as_posix() for p in files}
    assert found == {"transport/ode.py", "transport/leap.py", "__init__.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_hold_one_idea(path: Path) -> None:
    assert path.stem not in FORBIDDEN
    assert len(path.read_text().splitlines()) <= 400
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module says what it is"
    called = {
        n.func.id
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    }
    assert not called & {"print", "hasattr", "setattr", "eval", "exec"}


def test_the_face_is_what_was_decided() -> None:
    assert sorted(cflow.__all__) == sorted(FACE)


def classes() -> list[type]:
    found = set()
    for name in FLOORS:
        module = __import__(f"cflow.{name}", fromlist=["*"])
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__.startswith("cflow."):
                found.add(value)
    return sorted(found, key=lambda c: c.__qualname__)


@pytest.mark.parametrize("cls", classes(), ids=lambda c: c.__name__)
def test_no_concrete_method_of_ours_is_overridden(cls: type) -> None:
    for name, value in vars(cls).items():
        if name.startswith("__") or not callable(value):
            continue
        for parent in cls.__mro__[1:]:
            theirs = vars(parent).get(name)
            if theirs is None or not parent.__module__.startswith("cflow."):
                continue
            assert getattr(theirs, "__isabstractmethod__", False) or getattr(
                parent, "_is_protocol", False
            ), f"{cls.__name__}.{name} overrides {parent.__name__}.{name}"


@pytest.mark.parametrize("cls", classes(), ids=lambda c: c.__name__)
def test_public_names_are_documented(cls: type) -> None:
    assert inspect.getdoc(cls)
    assert not cls.__name__.startswith(("Base", "Abstract")) or cls.__name__ == "Base"


def test_options_without_parameters_are_frozen() -> None:
    from cflow.field import Divergence, PathSchedule, Prediction
    from cflow.jump import Clock, Draw, JumpLoss, JumpPath, JumpSampler
    from cflow.matching import LossWeight, PlanCoupling, TimeLaw, VelocityError
    from cflow.ode import Adjoint, Solver
    from cflow.samples import EndCovariance, NoiseLevel, PathSampler
    from cflow.train import Schedule
    from cflow.transport import Cutoff, FixedPoint, Inversion, LogDet, UnivariateMap

    transport = (UnivariateMap, Inversion, LogDet, Cutoff, FixedPoint)
    matching = (PathSchedule, Prediction, LossWeight, PlanCoupling, TimeLaw, VelocityError)
    sampling = (EndCovariance, NoiseLevel, PathSampler)
    jumps = (Clock, Draw, JumpLoss, JumpPath, JumpSampler)
    for kind in (Solver, Adjoint, Divergence, Schedule, *transport, *matching, *sampling, *jumps):
        for cls in classes():
            if issubclass(cls, kind) and not inspect.isabstract(cls):
                assert cls.__dataclass_params__.frozen, cls  # type: ignore[attr-defined]
