"""Makes the file that a plan needs: quantised with ONNX Runtime's tools, or compiled with AOTInductor.

Belongs to the measuring process: it takes seconds to minutes, and gigabytes of memory.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headrace_server.inference.plans.compiling import CompileRequest, compile_apart
from headrace_server.inference.plans.plan import Form, Plan
from headrace_server.models.calibration import CalibrationRows, can_be_stored, write_rows
from headrace_server.precision import Precision, Tolerances
from headrace_server.tensors import Array, Signature, Tensors

_MULTIPLICATIONS = ("MatMul", "Gemm", "Gather", "Attention", "LSTM", "EmbedLayerNormalization")
"""Convolutions are left out: those with dynamic ranges are slower than 32-bit ones."""
_MOST_CALIBRATION_ROWS = 64
_QUANTIZED = frozenset({"DynamicQuantizeLinear", "MatMulInteger", "QuantizeLinear", "DynamicQuantizeMatMul"})


class CannotPrepare(Exception):
    """There is nothing in this program that the plan could change."""


def prepare(
    plan: Plan,
    source: Path,
    signature: Signature,
    rows: Tensors,
    target: Path,
    seconds: float,
    tolerances: Tolerances = Tolerances(),  # noqa: B008 - a value
) -> None:
    """Make the file of a plan.  `rows` are calibration rows.  Compiling may take so many seconds.

    A plan that can leave parts as they are leaves as many as it takes to be within the `tolerances`.

    Raises CannotPrepare, CannotCompile, or what the tools raise.
    """
    if plan.form is Form.COMPILED:
        shapes = _example_shapes(rows, signature)
        request = CompileRequest(plan=plan, source=source, signature=signature, shapes=shapes, target=target)
        if plan.precision is Precision.INT8:
            kept = {"rows": _stored(rows, signature, target), "tolerances": tolerances, "search_seconds": seconds / 4}
            request = request.model_copy(update=kept)
        compile_apart(request, seconds)
    elif plan.form is Form.STATIC:
        _quantize_static(source, rows, signature, target)
    else:
        assert plan.form is Form.DYNAMIC
        _quantize_dynamic(source, target)


def _stored(rows: Tensors, signature: Signature, target: Path) -> Path:
    """Some rows in a file beside the target."""
    if not can_be_stored(signature):
        raise CannotPrepare("its rows are of types that cannot be handed on")
    path = target.with_suffix(".rows.safetensors")
    count = _MOST_CALIBRATION_ROWS if signature.is_batchable else None
    write_rows(CalibrationRows({name: array[:count] if array.ndim else array for name, array in rows.items()}), path)
    return path


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


def _example_shapes(rows: Tensors, signature: Signature) -> dict[str, tuple[int, ...]]:
    """Of two rows: one would be taken for a constant."""
    return {name: (2, *array.shape[1:]) if signature.is_batchable else array.shape for name, array in rows.items()}
