"""Trace a module into one graph of tensor operations that takes any batch size.

`torch.export` does not see through the gradients of `torch.func`, of which an exact divergence is
made. Where it gives up, `make_fx` unfolds them first, into a graph of plain operations.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from types import EllipsisType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._decomp import decomposition_table
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.func import functional_call
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from cflow.export.exportable import Exportable
from cflow.export.of_flow import OfFlow
from cflow.export.parity import ExportError, evaluating, one_line
from cflow.export.token_sampler import TokenSampler
from cflow.field import Exact

__all__ = ["traced"]

BACKWARD = {op: rule for op, rule in decomposition_table.items() if "backward" in str(op)}
"""Gradients of single operations, as operations that every format knows."""


def traced(
    where: str, module: Exportable, inputs: dict[str, Tensor], *, spelled: bool = False
) -> ExportedProgram:
    """Trace a module at any batch size.

    Args:
        where: Who asks, for the error.
        module: What is traced, in evaluation mode and without gradients.
        inputs: Examples by name; their first axis is the batch.
        spelled: Spell gradients of single operations out, for formats that know operations only.

    Raises:
        ExportError: It cannot be traced; the reason is told.
    """
    shapes = {name: {0: Dim.DYNAMIC} for name in inputs}
    causes = []
    tokens = isinstance(module, TokenSampler)
    for way in (_as_it_is, _unrolled, _both) if tokens else (_as_it_is, _unfolded, _one_by_one):
        try:
            with evaluating(module), parametrize.cached():
                graph = way(module, inputs, spelled=spelled)
                program = torch.export.export(graph, (), inputs, dynamic_shapes=shapes)
            _expect_plain(program)
            _expect_any_batch(program, inputs)
            _forget_sources(program.graph_module)
        except Exception as error:  # noqa: BLE001  whatever stops it, another way may pass
            causes.append(error)
        else:
            return program
    words = "; ".join(dict.fromkeys(map(one_line, causes)))
    raise ExportError(f"{where}: the module cannot be traced at any batch size ({words})") from (
        causes[-1]
    )


def _as_it_is(module: nn.Module, inputs: dict[str, Tensor], *, spelled: bool) -> nn.Module:
    return module


def _one_by_one(module: Exportable, inputs: dict[str, Tensor], *, spelled: bool) -> nn.Module:
    """Return the graph of a divergence that takes one entry at a time: vmap may fix the batch."""
    again = _copied(module)
    assert isinstance(again, OfFlow)
    again.flow = again.flow.with_solver(divergence=Exact(chunk=1))
    return _unfolded(again, inputs, spelled=spelled)


def _unrolled(module: Exportable, inputs: dict[str, Tensor], *, spelled: bool) -> nn.Module:
    """Return a sampler of tokens whose graph has no loop."""
    again = _copied(module)
    assert isinstance(again, TokenSampler)
    again.unrolled = True
    return again


def _both(module: Exportable, inputs: dict[str, Tensor], *, spelled: bool) -> nn.Module:
    again = _unrolled(module, inputs, spelled=spelled)
    return _unfolded(again, inputs, spelled=spelled)


def _copied(module: Exportable) -> Exportable:
    again = copy.copy(module)
    again._modules = dict(module._modules)  # shared else
    return again


def _expect_plain(program: ExportedProgram) -> None:
    """Raise for a graph that files cannot hold.

    Tensors of a gradient under way may have been taken for constants, and a loop may hold tensors.
    """
    for x in program.constants.values():
        if isinstance(x, Tensor) and is_functorch_wrapped_tensor(x):
            raise RuntimeError("torch.export took the tensors of a gradient for constants")
    for loop in list(_graphs(program.graph_module))[1:]:
        for node in loop.graph.nodes:
            if node.op == "get_attr" and isinstance(getattr(loop, str(node.target)), Tensor):
                raise RuntimeError("a loop of the graph holds a tensor of its own")


def _expect_any_batch(program: ExportedProgram, inputs: dict[str, Tensor]) -> None:
    """Raise where the size of the examples stands in the graph, though nothing said so."""
    with torch.no_grad():
        program.module()(**{name: torch.cat([x, x[:1]]) for name, x in inputs.items()})


def _graphs(module: nn.Module) -> Iterator[GraphModule]:
    """Yield a graph and those of the loops in it."""
    return (part for part in module.modules() if isinstance(part, GraphModule))


def _forget_sources(module: nn.Module) -> None:
    """Drop from every operation the lines and folders of the code that it came from."""
    for part in _graphs(module):
        for node in part.graph.nodes:
            node.meta.pop("stack_trace", None)


def _unfolded(module: nn.Module, inputs: dict[str, Tensor], *, spelled: bool) -> GraphModule:
    """Return the module as a graph without `torch.func`, its weights under plain names.

    Only the batch axis is left open. Where the code asks for its size, as the chunks of a
    divergence do, the graph has the answer for the examples.
    """
    parameters = dict(module.named_parameters())
    state = {**parameters, **dict(module.named_buffers())}
    fake = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def faked(name: str, x: Tensor, first: DimDynamic) -> Tensor:
        sizes = [DimDynamic.STATIC if axis else first for axis in range(x.dim())]
        context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)
        return fake.from_tensor(x.detach(), source=ConstantSource(name), symbolic_context=context)

    def call(*tensors: Tensor) -> Tensor:
        given = dict(zip(inputs, tensors[len(state) :], strict=True))
        weights = dict(zip(state, tensors[: len(state)], strict=True))
        for name in parameters:
            weights[name]._is_param = True  # type: ignore[attr-defined]  for `get_parameter`
        return functional_call(module, weights, (), given)

    names = [f"weight_{k}" for k in range(len(state))]
    tensors = [
        *(faked(name, x, DimDynamic.STATIC) for name, x in zip(names, state.values(), strict=True)),
        *(faked(name, x, DimDynamic.DYNAMIC) for name, x in inputs.items()),
    ]
    with fake, _exporting(), _AnyBatch():
        found = make_fx(call)(*tensors)
        if spelled:  # afterwards: the rules do not work under vmap
            rules = cast(dict[Any, Callable[..., Any]], BACKWARD)
            found = make_fx(found, decomposition_table=rules)(*tensors)
    held = dict(zip(names, (x.detach() for x in state.values()), strict=True))
    return _rooted(found, [*names, *inputs], held)


def _rooted(found: GraphModule, names: list[str], held: dict[str, Tensor]) -> GraphModule:
    """Give placeholders their names, and turn those of weights into buffers of the graph."""
    root, graph, seen = nn.Module(), Graph(), {}
    remaining = iter(names)
    for node in found.graph.nodes:
        node = cast(Node, node)
        if node.op not in ("placeholder", "get_attr"):
            seen[node] = graph.node_copy(node, lambda each: seen[each])
            continue
        name = next(remaining) if node.op == "placeholder" else str(node.target)
        if node.op == "placeholder" and name not in held:
            seen[node] = graph.placeholder(name)
            continue
        value = held[name] if node.op == "placeholder" else getattr(found, name)
        root.register_buffer(name, value.detach())
        seen[node] = graph.get_attr(name)
    return GraphModule(root, graph)


@contextlib.contextmanager
def _exporting() -> Iterator[None]:
    """Let code that asks whether it is traced hear that it is, as under `torch.export`."""
    compiler: Any = torch.compiler
    before = compiler._is_compiling_flag, compiler._is_exporting_flag
    compiler._is_compiling_flag = compiler._is_exporting_flag = True
    try:
        yield
    finally:
        compiler._is_compiling_flag, compiler._is_exporting_flag = before


class _AnyBatch(TorchFunctionMode):
    """Write functions, that within `torch.func` fix the batch size, as ones that do not."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func is functional.linear:
            return _linear(*args, **kwargs)
        if func is functional.interpolate and kwargs["mode"] == "nearest" and not kwargs["size"]:
            return _nearest(args[0], int(kwargs["scale_factor"]))
        if func is functional.pad and _behind(args[1], kwargs["mode"]):
            return _padded(args[0], args[1][1], kwargs["value"] or 0)
        if func is functional.one_hot:
            return _one_hot(*args, **kwargs)
        if func is Tensor.__getitem__ and _slices(args[1]):
            return _sliced(*args)
        return func(*args, **kwargs)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    flat = input if input.dim() < 3 else input.flatten(0, -2)
    y = flat @ weight.mT if bias is None else torch.addmm(bias, flat, weight.mT)
    return y if input.dim() < 3 else y.unflatten(0, input.shape[:-1])


def _nearest(x: Tensor, factor: int) -> Tensor:
    *lead, height, width = x.shape
    wide = x.unsqueeze(-1).unsqueeze(-3).expand(*lead, height, factor, width, factor)
    return wide.reshape(*lead, height * factor, width * factor)


def _behind(pad: Sequence[int], mode: str) -> bool:
    return mode == "constant" and len(pad) == 2 and pad[0] == 0 and pad[1] >= 0


def _padded(x: Tensor, more: int, value: float) -> Tensor:
    return torch.cat([x, torch.full_like(x[..., :1], value).expand(*x.shape[:-1], more)], -1)


def _one_hot(tensor: Tensor, num_classes: int) -> Tensor:
    return (tensor[..., None] == torch.arange(num_classes, device=tensor.device)).long()


def _slices(index: Any) -> bool:  # noqa: ANN401
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is Ellipsis or isinstance(part, slice) for part in parts)


def _sliced(x: Tensor, index: slice | EllipsisType | tuple[Any, ...]) -> Tensor:
    """Return x[index], of slices alone, by one operation for each."""
    parts: list[Any] = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in parts:
        k = parts.index(Ellipsis)
        parts[k : k + 1] = [slice(None)] * (x.dim() - len(parts) + 1)
    for axis, part in enumerate(parts):
        if part != slice(None):
            step = 1 if part.step is None else part.step
            x = torch.ops.aten.slice.Tensor(x, axis, part.start, part.stop, step)
    return x
