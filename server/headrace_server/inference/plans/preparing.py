"""Makes the file that a plan needs: quantised with ONNX Runtime's tools, or compiled with AOTInductor.

Belongs to the measuring process: it takes seconds to minutes, gigabytes of memory, and a C++ compiler.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headrace_server.inference.plans.plan import Form, Plan
from headrace_server.precision import Precision
from headrace_server.tensors import Array, Signature, Tensors

_MULTIPLICATIONS = ("MatMul", "Gemm", "Gather", "Attention", "LSTM", "EmbedLayerNormalization")
"""Convolutions are left out: those with dynamic ranges are slower than 32-bit ones."""
_MOST_CALIBRATION_ROWS = 64
_MOST_ROWS = 65_536
_QUANTIZED = frozenset({"DynamicQuantizeLinear", "MatMulInteger", "QuantizeLinear", "DynamicQuantizeMatMul"})


class CannotPrepare(Exception):
    """There is nothing in this program that the plan could change."""


def prepare(plan: Plan, source: Path, signature: Signature, rows: Tensors, target: Path) -> None:
    """Make the file of a plan.  `rows` are calibration rows.  Raises CannotPrepare, or what the tools raise."""
    if plan.form is Form.COMPILED:
        _compile(plan, source, signature, rows, target)
    elif plan.form is Form.STATIC:
        _quantize_static(source, rows, signature, target)
    else:
        assert plan.form is Form.DYNAMIC
        _quantize_dynamic(source, target)


def _quantize_dynamic(source: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain = target.with_suffix(".plain.onnx")
    _write_without_shapes(source, plain)
    # Signed weights: unsigned ones take three to four times as long on processors with VNNI.
    quantize_dynamic(
        plain, target, op_types_to_quantize=list(_MULTIPLICATIONS), weight_type=QuantType.QInt8, per_channel=True
    )
    plain.unlink()
    _check_that_something_changed(onnx.load(str(target), load_external_data=False))


def _quantize_static(source: Path, rows: Tensors, signature: Signature, target: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    plain = target.with_suffix(".plain.onnx")
    _write_without_shapes(source, plain)
    quantize_static(
        plain,
        target,
        _Reader(rows, signature),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    plain.unlink()
    _check_that_something_changed(onnx.load(str(target), load_external_data=False))


def _write_without_shapes(source: Path, target: Path) -> None:
    """Drop the shapes of inner values: they are those before the quantiser's own changes, at which it would stop."""
    import onnx

    model = onnx.load(str(source))
    del model.graph.value_info[:]
    onnx.save(model, str(target))


def _check_that_something_changed(model: Any) -> None:
    if not any(node.op_type in _QUANTIZED or node.op_type.startswith("QLinear") for node in model.graph.node):
        raise CannotPrepare("it has no operator that can be quantised")


class _Reader:
    """Calibration rows as ONNX Runtime's calibrator reads them: one row at a time, or all of a model without rows."""

    def __init__(self, rows: Tensors, signature: Signature) -> None:
        self._feeds: Iterator[dict[str, Array]] = iter(_feeds(rows, signature))

    def get_next(self) -> dict[str, Array] | None:
        """The next row; None after the last."""
        return next(self._feeds, None)

    def __iter__(self) -> "_Reader":
        """The calibrator iterates over readers."""
        return self

    def __next__(self) -> dict[str, Array]:
        """The next row."""
        return next(self._feeds)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Not supported; the calibrator only asks readers that have a length."""
        raise NotImplementedError


def _feeds(rows: Tensors, signature: Signature) -> list[dict[str, Array]]:
    if not signature.is_batchable:
        return [dict(rows)]
    count = min(len(next(iter(rows.values()))), _MOST_CALIBRATION_ROWS)
    return [{name: array[index : index + 1] for name, array in rows.items()} for index in range(count)]


def _compile(plan: Plan, source: Path, signature: Signature, rows: Tensors, target: Path) -> None:
    import torch
    from torch import Tensor, nn

    from headrace_server.inference.backends.torch_export import order_of, to_torch
    from headrace_server.inference.backends.torch_lowering import lower

    program = torch.export.load(str(source))
    call_spec = program.call_spec
    dtypes = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}
    if plan.precision in dtypes:
        inner: nn.Module = lower(program, dtypes[plan.precision], keeps_norms=plan.keeps_norms)
    else:
        inner = program.module()

    class Flat(nn.Module):
        """The program with a flat list of inputs and of outputs."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
            args, keywords = torch.utils._pytree.tree_unflatten(list(inputs), call_spec.in_spec)  # noqa: SLF001
            results, _ = torch.utils._pytree.tree_flatten(self.inner(*args, **keywords))  # noqa: SLF001
            return tuple(results)

    inputs, _ = order_of(source, signature)
    # Two rows: one would be taken for a constant.
    example = tuple(to_torch(_two_rows(rows[spec.name], signature), spec.data_type) for spec in inputs)
    batch = torch.export.Dim("batch", min=1, max=_MOST_ROWS)
    shapes = tuple(
        {axis: batch if axis == 0 else torch.export.Dim.AUTO for axis, length in enumerate(spec.shape) if length == -1}
        for spec in inputs
    )
    with torch.no_grad():
        exported = torch.export.export(Flat(), example, dynamic_shapes={"inputs": shapes})
        # Threads are decided by each run, not by the compiler; weights are folded into the layout that is fastest.
        torch._inductor.aoti_compile_and_package(  # noqa: SLF001 - the documented way
            exported,
            package_path=str(target),
            inductor_configs={"cpp.dynamic_threads": True, "freezing": True},
        )


def _two_rows(array: Array, signature: Signature) -> Array:
    import numpy as np

    if not signature.is_batchable:
        return array
    return array[:2] if len(array) > 1 else np.concatenate([array, array])
