"""Small ONNX programs, made on the spot."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Axis = int | str


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, int, Sequence[Axis]]],
    outputs: Sequence[tuple[str, int, Sequence[Axis]]],
    initializers: Sequence[onnx.TensorProto] = (),
    opset: int = 20,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        list(initializers),
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return made


def scale(factor: float = 2.0, width: int = 2) -> onnx.ModelProto:
    """y = x * factor, for rows of float32."""
    return model(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        [("x", TensorProto.FLOAT, ["batch", width])],
        [("y", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(np.array(factor, np.float32), "factor")],
    )


def mlp(sizes: Sequence[int] = (64, 256, 256, 10), seed: int = 0) -> onnx.ModelProto:
    """Layers with ReLU between them and random weights."""
    rng = np.random.default_rng(seed)
    nodes, weights, last = [], [], "x"
    for index, (rows, columns) in enumerate(pairwise(sizes)):
        weight = rng.normal(0, rows**-0.5, (rows, columns)).astype(np.float32)
        weights += [
            numpy_helper.from_array(weight, f"w{index}"),
            numpy_helper.from_array(np.zeros(columns, np.float32), f"b{index}"),
        ]
        is_last = index == len(sizes) - 2
        nodes.append(helper.make_node("Gemm", [last, f"w{index}", f"b{index}"], ["y" if is_last else f"g{index}"]))
        if not is_last:
            nodes.append(helper.make_node("Relu", [f"g{index}"], [f"h{index}"]))
        last = f"h{index}"
    return model(
        nodes,
        [("x", TensorProto.FLOAT, ["batch", sizes[0]])],
        [("y", TensorProto.FLOAT, ["batch", sizes[-1]])],
        weights,
    )


def lookup(length: int = 4) -> onnx.ModelProto:
    """y = table[x]: an index that is out of range makes the run fail, although it fits the signature."""
    table = np.arange(length, dtype=np.float32) * 10
    return model(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        [("x", TensorProto.INT64, ["batch"])],
        [("y", TensorProto.FLOAT, ["batch"])],
        [numpy_helper.from_array(table, "table")],
    )


def total() -> onnx.ModelProto:
    """y = the sum over all rows, in one row: it claims a free first axis, but rows depend on each other."""
    return model(
        [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)],
        [("x", TensorProto.FLOAT, ["batch", 2])],
        [("y", TensorProto.FLOAT, ["any", 2])],
        [numpy_helper.from_array(np.array([0], np.int64), "axes")],
    )


def identity(element_type: int, shape: Sequence[Axis] = ("batch", 2)) -> onnx.ModelProto:
    return model(
        [helper.make_node("Identity", ["x"], ["y"])], [("x", element_type, shape)], [("y", element_type, shape)]
    )


def masked_mean() -> onnx.ModelProto:
    """The mean of the ids that a mask reads, for sequences of any length."""
    return model(
        [
            helper.make_node("Cast", ["ids"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["attention_mask"], ["weights"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["numbers", "weights"], ["read"]),
            helper.make_node("ReduceSum", ["read", "axes"], ["total"], keepdims=1),
            helper.make_node("ReduceSum", ["weights", "axes"], ["count"], keepdims=1),
            helper.make_node("Div", ["total", "count"], ["y"]),
        ],
        [("ids", TensorProto.INT64, ["batch", "time"]), ("attention_mask", TensorProto.INT64, ["batch", "time"])],
        [("y", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(np.array([1], np.int64), "axes")],
    )
