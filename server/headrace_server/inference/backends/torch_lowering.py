"""Rewrites a torch.export program so that it computes in 16-bit floats: weights, constants and everything between.

The exported graph names its number formats outright (`arange(dtype=float32)`, `to(float32)`, checks of what passes), so
changing the weights is not enough, and autocast would convert every weight in every run.  Inputs and outputs keep the
types of the signature.

What adds up many numbers or grows exponentially (normalisation, softmax, means, exponentials) may be left in 32 bits:
its inputs are widened and its results shortened again.  That is where FP16 overflows first.
"""

import operator
from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

_aten = torch.ops.aten
_Formats: TypeAlias = dict[Node, torch.dtype | None]
# By the name of the operator, whatever its overload.
_SENSITIVE = frozenset({
    "layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "batch_norm", "instance_norm", "rms_norm",
    "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "native_batch_norm",
    "softmax", "_softmax", "log_softmax", "_log_softmax", "logsumexp", "exp", "expm1", "log", "log1p", "pow", "rsqrt",
    "reciprocal", "square", "sum", "mean", "var", "std", "prod", "cumsum", "norm", "linalg_vector_norm", "cosh", "sinh",
})  # fmt: skip
_ARITHMETIC = frozenset({
    "add", "sub", "mul", "div", "neg", "sqrt", "clamp", "clamp_min", "maximum", "minimum", "unsqueeze", "squeeze",
    "expand", "view", "reshape",
})  # fmt: skip
_FORMAT_CHECKS = frozenset({"_assert_tensor_metadata"})


def lower(program: ExportedProgram, dtype: torch.dtype, *, keeps_norms: bool, takes_short: bool = False) -> GraphModule:
    """The program as a module that computes in `dtype`; called exactly as `program.module()` is.

    With `takes_short` it takes what were 32-bit floats in `dtype`: whoever calls it has converted them.  Only 32-bit
    floats are changed.  Raises whatever torch raises for a graph that cannot be rewritten.
    """
    module = program.module()
    assert isinstance(module, GraphModule)
    graph = module.graph
    # What each value is in the exported program; what we insert stands for what it converts.
    formats: _Formats = {node: _format_of(module, node) for node in graph.nodes}
    for node in list(graph.nodes):
        if node.op == "call_function" and _operator(node) in _FORMAT_CHECKS:
            graph.erase_node(node)
    wide = _find_wide(graph, formats) if keeps_norms else set()
    for node in list(graph.nodes):
        if node.op == "placeholder" and formats[node] == torch.float32:
            if takes_short:
                continue
            _convert_after(graph, node, dtype, formats, node.users)
        elif node.op == "call_function":
            if node in wide:
                _widen(graph, node, wide, formats, dtype)
            else:
                node.args, node.kwargs = _shorter(node.args, dtype), _shorter(node.kwargs, dtype)
        elif node.op == "output":
            _restore(graph, node, formats)
    _convert_weights(module, dtype)
    graph.lint()
    module.recompile()
    return module


def _operator(node: Node) -> str:
    return getattr(getattr(node.target, "overloadpacket", node.target), "__name__", str(node.target))


def _format_of(module: GraphModule, node: Node) -> torch.dtype | None:
    if node.op == "get_attr":
        value: Any = operator.attrgetter(str(node.target))(module)
    else:
        value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None


def _shorter(arguments: Any, dtype: torch.dtype) -> Any:
    """Arguments with every mention of float32 replaced."""
    return torch.fx.node.map_aggregate(arguments, lambda value: dtype if value is torch.float32 else value)


def _convert_after(graph: Graph, node: Node, dtype: torch.dtype, formats: _Formats, users: Iterable[Node]) -> None:
    """Let these users of a value use it in `dtype`."""
    users = list(users)
    if not users:
        return
    behind = [other for other in graph.nodes if other.op == "placeholder"][-1] if node.op == "placeholder" else node
    with graph.inserting_after(behind):
        converted = graph.call_function(_aten.to.dtype, (node, dtype))
    formats[converted] = formats[node]
    for user in users:
        user.replace_input_with(node, converted)


def _find_wide(graph: Graph, formats: _Formats) -> set[Node]:
    """What stays in 32 bits: the sensitive operators, and simple arithmetic between nothing but their results."""
    wide: set[Node] = set()
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        name = _operator(node)
        if name in _SENSITIVE or name == "getitem":
            is_wide = name in _SENSITIVE or node.args[0] in wide
        else:
            floats = [source for source in node.all_input_nodes if formats.get(source) == torch.float32]
            is_wide = name in _ARITHMETIC and bool(floats) and all(source in wide for source in floats)
        if is_wide:
            wide.add(node)
    return wide


def _widen(graph: Graph, node: Node, wide: set[Node], formats: _Formats, dtype: torch.dtype) -> None:
    for source in list(node.all_input_nodes):
        if source not in wide and formats.get(source) == torch.float32:
            with graph.inserting_before(node):
                widened = graph.call_function(_aten.to.dtype, (source, torch.float32))
            node.replace_input_with(source, widened)
    if formats[node] == torch.float32:
        _convert_after(graph, node, dtype, formats, [user for user in node.users if user not in wide])


def _restore(graph: Graph, output: Node, formats: _Formats) -> None:
    """Give outputs back in the types that the signature says."""

    def restored(value: Node) -> Node:
        if formats.get(value) != torch.float32:
            return value
        with graph.inserting_before(output):
            return graph.call_function(_aten.to.dtype, (value, torch.float32))

    output.args = torch.fx.node.map_arg(output.args, restored)


def _convert_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Shorten every float32 weight; what stays in 32 bits widens its own again, which compilers fold away."""
    for owner, name, tensor in list(_tensors(module)):
        if tensor.dtype == torch.float32:
            shorter: Tensor = tensor.detach().to(dtype)
            if isinstance(tensor, nn.Parameter):
                owner._parameters[name] = nn.Parameter(shorter, requires_grad=False)  # noqa: SLF001 - the way nn.Module itself keeps them
            elif name in owner._buffers:  # noqa: SLF001
                owner._buffers[name] = shorter  # noqa: SLF001
            else:
                setattr(owner, name, shorter)


def _tensors(module: nn.Module) -> Iterable[tuple[nn.Module, str, Tensor]]:
    for owner in module.modules():
        named = [*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False), *vars(owner).items()]
        yield from ((owner, name, value) for name, value in named if isinstance(value, Tensor))
