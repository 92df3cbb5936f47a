"""Rewrites a torch.export program so that its products with constant weights run in INT8, with a scale for each row.

Weights are rounded once (`torch_rounding.py`).  Rows are rounded in each run: with a scale and a middle for each of
them, an outlier costs nobody but its own row.  Everything between the products stays in 32 bits.  Products that lose
too much are left in 16 or 32 bits, as few as it takes; which, is found out on calibration rows.

The graph says so with torch's own operators for quantised numbers.  Inductor replaces them by oneDNN's products of
bytes when it freezes the weights; run without a compiler they compute the same, slowly.
"""

import operator
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators for quantised numbers
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node

from headrace_server.inference.backends.torch_rounding import LARGEST, Rounded, round_weights

_aten = torch.ops.aten
_quantized = torch.ops.quantized_decomposed
_MIDDLE = 128
"""The byte that stands for a row's middle."""
_LEAST_SCALE = 1e-12
_LEAST_WIDTH = 64
"""Narrower products gain nothing."""
_LEAST_SHARE = 0.5
"""Of the weights that convolutions and products have: what is mostly something else gains little."""
_GELU = (
    0.39871174, -0.0659834781, 0.00958465992, -0.00103747232, 8.1411137e-05, -4.45080585e-06, 1.59066855e-07,
    -3.31411304e-09, 3.03616195e-11,
)  # fmt: skip
"""By powers of x²: what times x is the normal distribution's function less a half, up to _GELU_REACH.  Least squares,
weighted so that GELU is right to 5e-5: a hundredth of what rounding its result to a byte costs."""
_GELU_REACH = 4.5
_MOST_SAMPLES = 8192
_MOST_KEPT = 0.5
"""Of the weights: a plan that leaves more of them as they were is none."""
_GROWTH = 1.5

Judge = Callable[[Sequence[Tensor], Sequence[Tensor]], str]
"""Gets the outputs of the 32-bit program and these for the calibration rows, and says why these are not good enough;
nothing when they are."""


class CannotQuantize(Exception):
    """There are no products that are worth it, or too many of them lose too much."""


@dataclass(frozen=True, slots=True, eq=False)
class _Product:
    """Linear layers that take the same input, and so are one product."""

    layers: tuple[Node, ...]
    weights: Tensor
    """[outputs, inputs]"""
    bias: Tensor

    @property
    def source(self) -> Node:
        """What is multiplied."""
        return self.layers[0].all_input_nodes[0]


def quantize(program: ExportedProgram, inputs: Sequence[Tensor], judge: Judge, seconds: float) -> GraphModule:
    """The program in INT8; called exactly as `program.module()` is.

    `inputs` are calibration rows, flat in the program's own order; for so many `seconds` products are looked for that
    have to be left as they are.  Raises CannotQuantize, or what torch raises.
    """
    until = time.monotonic() + seconds
    module = program.module()
    assert isinstance(module, GraphModule)
    products = _find(module)
    if not products:
        raise CannotQuantize(
            f"it has no linear layers of at least {_LEAST_WIDTH} by {_LEAST_WIDTH} that are most of it"
        )
    with torch.no_grad():
        rounded, wanted = _round(module, products, inputs)
        never = {index for index, weights in rounded.items() if weights is None}
        sizes = [product.weights.numel() for product in products]
        order: list[int] = []
        num_kept, why = 0, "nothing is left"
        while True:
            kept = never | set(order[:num_kept])
            if sum(sizes[index] for index in kept) > sum(sizes) * _MOST_KEPT:
                raise CannotQuantize(f"with most of its {len(products)} products left as they are, {why}")
            made = _rewritten(program, rounded, kept)
            why = judge(wanted, _run(made, inputs))
            if not why:
                return made
            if not order:
                order = _by_loss(program, rounded, never, inputs, wanted, until)
            if time.monotonic() > until:
                raise CannotQuantize(f"with {len(kept)} of {len(products)} products left as they are, {why}")
            num_kept = max(num_kept + 1, int(num_kept * _GROWTH))


def _find(module: GraphModule) -> list[_Product]:
    """The products of a program in their order; none when they are the lesser part of it."""
    module.graph.eliminate_dead_code()
    groups: dict[Node, list[Node]] = {}
    others = 0
    for node in module.graph.nodes:
        weights = _constant(module, node.args[1]) if node.op == "call_function" and len(node.args) > 1 else None
        if weights is None or weights.ndim < 2:
            continue
        if (
            node.target is _aten.linear.default
            and weights.dtype is torch.float32
            and min(weights.shape) >= _LEAST_WIDTH
        ):
            groups.setdefault(node.args[0], []).append(node)
        elif node.target in (_aten.linear.default, _aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default):
            others += weights.numel()
    products = [_product(module, layers) for layers in groups.values()]
    own = sum(product.weights.numel() for product in products)
    return products if own > (own + others) * _LEAST_SHARE else []


def _product(module: GraphModule, layers: Sequence[Node]) -> _Product:
    weights, biases = [], []
    for layer in layers:
        weight = _constant(module, layer.args[1])
        assert weight is not None
        bias = _constant(module, layer.args[2]) if len(layer.args) > 2 else None
        weights.append(weight)
        biases.append(torch.zeros(len(weight)) if bias is None else bias)
    return _Product(tuple(layers), torch.cat(weights), torch.cat(biases))


def _constant(module: GraphModule, value: Any) -> Tensor | None:
    if not (isinstance(value, Node) and value.op == "get_attr"):
        return None
    found = operator.attrgetter(str(value.target))(module)
    return found.detach() if isinstance(found, Tensor) else None


def _run(module: GraphModule, inputs: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.utils._pytree.tree_leaves(Interpreter(module).run(*inputs)))  # noqa: SLF001 - as torch.export does


def _round(
    module: GraphModule, products: Sequence[_Product], inputs: Sequence[Tensor]
) -> tuple[dict[int, Rounded | None], list[Tensor]]:
    """Round every product for the inputs that it gets, in one run, and return what the run has answered.

    None: its inputs are nothing that weights can be rounded for.
    """
    rounded: dict[int, Rounded | None] = {}

    class Watching(Interpreter):
        def run_node(self, node: Node) -> Any:
            result = super().run_node(node)
            for index, product in enumerate(products):
                if product.source is node:
                    rounded[index] = _round_one(product, result)
            return result

    wanted = torch.utils._pytree.tree_leaves(Watching(module).run(*inputs))  # noqa: SLF001 - as torch.export does
    return rounded, list(wanted)


def _round_one(product: _Product, value: Tensor) -> Rounded | None:
    rows = value.reshape(-1, value.shape[-1])
    rows = rows[:: max(-(-len(rows) // _MOST_SAMPLES), 1)]
    rows = rows[rows.isfinite().all(-1)]
    return round_weights(product.weights, rows) if len(rows) else None


def _by_loss(
    program: ExportedProgram,
    rounded: dict[int, Rounded | None],
    never: Collection[int],
    inputs: Sequence[Tensor],
    wanted: Sequence[Tensor],
    until: float,
) -> list[int]:
    """Products, first the one whose rounding alone changes the answers most for each weight.

    What there was no time to look at comes last.
    """
    losses: dict[int, float] = {}
    for index, one in rounded.items():
        if one is not None and time.monotonic() < until:
            # In 32 bits all around it: others in BF16 would lose more than most products do.
            found = _run(_rewritten(program, rounded, set(rounded) - {index}, shortens=False), inputs)
            losses[index] = _distance(wanted, found) / one.numbers.numel()
    return sorted(set(rounded) - set(never), key=lambda index: losses.get(index, -1.0), reverse=True)


def _distance(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    total = 0.0
    for want, have in zip(wanted, found, strict=True):
        if want.is_floating_point() and want.numel():
            total += float((have - want).double().pow(2).sum() / want.double().pow(2).sum().clamp(min=1e-30))
    return total


def _rewritten(
    program: ExportedProgram, rounded: dict[int, Rounded | None], kept: Collection[int], *, shortens: bool = True
) -> GraphModule:
    """With `shortens`, products that are kept are in BF16 where the processor has instructions for it."""
    module = program.module()
    assert isinstance(module, GraphModule)
    for index, product in enumerate(_find(module)):
        weights = rounded[index]
        if weights is not None and index not in kept:
            _Rewriting(module, product, index).replace(weights)
        elif shortens and torch.cpu._is_avx512_bf16_supported():  # noqa: SLF001 - there is no other way to ask
            _Rewriting(module, product, index).shorten()
    for node in list(module.graph.nodes):
        if node.target is _aten.gelu.default and node.kwargs.get("approximate", "none") == "none":
            _shorten_gelu(module, node)
    module.graph.lint()
    module.recompile()
    return module


def _shorten_gelu(module: GraphModule, node: Node) -> None:
    """x times a polynomial for the normal distribution's function."""
    call, (x, *_) = module.graph.call_function, node.args
    with module.graph.inserting_before(node):
        near = call(_aten.clamp.default, (x, -_GELU_REACH, _GELU_REACH))
        square = call(_aten.mul.Tensor, (near, near))
        total = call(_aten.mul.Tensor, (square, _GELU[-1]))
        for coefficient in reversed(_GELU[1:-1]):
            total = call(_aten.mul.Tensor, (call(_aten.add.Tensor, (total, coefficient)), square))
        odd = call(_aten.mul.Tensor, (call(_aten.add.Tensor, (total, _GELU[0])), near))
        node.replace_all_uses_with(call(_aten.mul.Tensor, (call(_aten.add.Tensor, (odd, 0.5)), x)))
    module.graph.erase_node(node)


class _Rewriting:
    """Writes one product anew, before its first layer."""

    def __init__(self, module: GraphModule, product: _Product, index: int) -> None:
        self._module, self._product, self._index = module, product, index
        self._graph = module.graph

    def replace(self, weights: Rounded) -> None:
        """In INT8.

        With m the middle of a row x, s its scale and q its bytes, x W = s (q - 128) W + m (1 W).
        """
        outputs = len(weights.scales)
        sums = (weights.numbers.float() * weights.scales[:, None]).sum(1)
        with self._graph.inserting_before(self._product.layers[0]):
            x = self._call(_aten.mul.Tensor, self._product.source, self._keep("factors", weights.factors))
            low, high = (self._call(act, x, [-1], True) for act in (_aten.amin.default, _aten.amax.default))
            middle = self._call(_aten.mul.Tensor, self._call(_aten.add.Tensor, low, high), 0.5)
            scale = self._call(_aten.mul.Tensor, self._call(_aten.sub.Tensor, high, low), 0.5 / LARGEST)
            scale = self._call(_aten.add.Tensor, scale, _LEAST_SCALE)
            inverse = self._call(_aten.reciprocal.default, scale)
            # Cutting off half a unit higher is rounding; so it costs one multiplication and one addition an element.
            offset = self._call(_aten.rsub.Scalar, self._call(_aten.mul.Tensor, middle, inverse), _MIDDLE + 0.5)
            raised = self._call(_aten.add.Tensor, self._call(_aten.mul.Tensor, x, inverse), offset)
            number = self._call(_aten.to.dtype, raised, torch.uint8)
            exact = self._call(_quantized.dequantize_per_tensor.default, number, 1.0, _MIDDLE, 0, 255, torch.uint8)
            weight = self._call(
                _quantized.dequantize_per_channel.default,
                self._keep("numbers", weights.numbers), self._keep("scales", weights.scales),
                self._keep("zeros", torch.zeros(outputs, dtype=torch.int64)), 0, -LARGEST, LARGEST, torch.int8,
            )  # fmt: skip
            y = self._call(_aten.mul.Tensor, self._call(_aten.linear.default, exact, weight), scale)
            y = self._call(_aten.add.Tensor, y, self._call(_aten.mul.Tensor, middle, self._keep("sums", sums)))
            y = self._call(_aten.add.Tensor, y, self._keep("bias", self._product.bias))
            self._hand_over(y)

    def shorten(self) -> None:
        """In BF16, whose products take half the time of 32-bit ones where there are instructions for them."""
        with self._graph.inserting_before(self._product.layers[0]):
            x = self._call(_aten.to.dtype, self._product.source, torch.bfloat16)
            weight = self._keep("weights", self._product.weights.to(torch.bfloat16))
            y = self._call(_aten.to.dtype, self._call(_aten.linear.default, x, weight), torch.float32)
            self._hand_over(self._call(_aten.add.Tensor, y, self._keep("bias", self._product.bias)))

    def _hand_over(self, y: Node) -> None:
        """Give each layer's users their part of what is one product now."""
        layers, begin = self._product.layers, 0
        for layer in layers:
            weight = _constant(self._module, layer.args[1])
            assert weight is not None
            part = y if len(layers) == 1 else self._call(_aten.slice.Tensor, y, -1, begin, begin + len(weight))
            begin += len(weight)
            layer.replace_all_uses_with(part)
        for layer in layers:
            self._graph.erase_node(layer)

    def _call(self, target: Any, *args: Any) -> Node:
        return self._graph.call_function(target, args)

    def _keep(self, name: str, value: Tensor) -> Node:
        """A constant of the module."""
        full = f"int8_{self._index}_{name}"
        self._module.register_buffer(full, value.clone(), persistent=True)
        return self._graph.get_attr(full)
