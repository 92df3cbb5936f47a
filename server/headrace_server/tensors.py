"""Types, shapes and signatures of tensors, as NumPy arrays inside the house.

Knows nothing of the wire, of models or of devices.  BF16 and FP8 are the NumPy types of ml_dtypes.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from typing import TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from headrace_server.errors import Violation

Array: TypeAlias = NDArray[np.generic]
Tensors: TypeAlias = Mapping[str, Array]


class DataType(StrEnum):
    """The type of every element of a tensor; names as in the contract."""

    FP32 = "FP32"
    FP64 = "FP64"
    FP16 = "FP16"
    BF16 = "BF16"
    FP8_E4M3 = "FP8_E4M3"
    FP8_E5M2 = "FP8_E5M2"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    BOOL = "BOOL"
    STRING = "STRING"

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The NumPy type; little-endian.  Strings are objects of `str`."""
        return _DTYPES[self]

    @property
    def is_floating(self) -> bool:
        """Whether elements can be NaN or infinite."""
        return self in _FLOATING

    @classmethod
    def of(cls, dtype: np.dtype[np.generic]) -> "DataType":
        """The type of an array's elements.  Raises KeyError for types that the contract does not have."""
        if dtype.kind in "UO":
            return cls.STRING
        return _BY_DTYPE[dtype.newbyteorder("=")]


_DTYPES: dict[DataType, np.dtype[np.generic]] = {
    DataType.FP32: np.dtype("<f4"),
    DataType.FP64: np.dtype("<f8"),
    DataType.FP16: np.dtype("<f2"),
    DataType.BF16: np.dtype(ml_dtypes.bfloat16),
    DataType.FP8_E4M3: np.dtype(ml_dtypes.float8_e4m3fn),
    DataType.FP8_E5M2: np.dtype(ml_dtypes.float8_e5m2),
    DataType.INT8: np.dtype("i1"),
    DataType.INT16: np.dtype("<i2"),
    DataType.INT32: np.dtype("<i4"),
    DataType.INT64: np.dtype("<i8"),
    DataType.UINT8: np.dtype("u1"),
    DataType.UINT16: np.dtype("<u2"),
    DataType.UINT32: np.dtype("<u4"),
    DataType.UINT64: np.dtype("<u8"),
    DataType.BOOL: np.dtype("?"),
    DataType.STRING: np.dtype("O"),
}
_BY_DTYPE = {dtype: data_type for data_type, dtype in _DTYPES.items()}
_FLOATING = {
    DataType.FP32, DataType.FP64, DataType.FP16, DataType.BF16, DataType.FP8_E4M3, DataType.FP8_E5M2,
}  # fmt: skip
_INTEGERS = {
    DataType.INT8, DataType.INT16, DataType.INT32, DataType.INT64,
    DataType.UINT8, DataType.UINT16, DataType.UINT32, DataType.UINT64,
}  # fmt: skip


class TensorSpec(BaseModel):
    """What a model accepts or returns under one name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    data_type: DataType
    shape: tuple[int, ...]
    """The length of each axis; -1 where any length is accepted."""
    finite_only: bool = False
    """Whether NaN and infinity are refused."""
    class_names: tuple[str, ...] = ()
    """For class scores: what each position of the last axis stands for.  For an input of integers: the text that each
    number stands for; callers may send the text.  If the first is empty, it stands for any text that is not listed."""

    @cached_property
    def codes(self) -> Mapping[str, int]:
        """The number that stands for each text of `class_names`."""
        return {text: code for code, text in enumerate(self.class_names) if text}

    @property
    def takes_text(self) -> bool:
        """Whether callers may send text in place of this input's numbers."""
        return bool(self.class_names) and self.data_type in _INTEGERS


class Signature(BaseModel):
    """What a model accepts and returns.

    A model is `batchable` when the first axis of every input and every output is free: rows of different callers may
    then be computed together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def is_batchable(self) -> bool:
        """Whether rows of different callers may be computed together."""
        return all(len(spec.shape) > 0 and spec.shape[0] == -1 for spec in (*self.inputs, *self.outputs))

    def encode_text(self, inputs: Tensors) -> Tensors:
        """Replace text by the numbers that stand for it, in inputs that have such; text is left where nothing does."""
        texts = [
            spec
            for spec in self.inputs
            if spec.takes_text and spec.name in inputs and inputs[spec.name].dtype == object
        ]
        return {**inputs, **{spec.name: _encode(inputs[spec.name], spec) for spec in texts}} if texts else inputs

    def violations(self, inputs: Tensors, output_names: Sequence[str] = ()) -> list[Violation]:
        """Everything that keeps these inputs from being computed; empty when they fit.

        Costs one pass over the elements of inputs that are `finite_only`, and otherwise only looks at shapes.
        """
        found = _name_violations("inputs", inputs, [spec.name for spec in self.inputs], required=True)
        found += _name_violations("output_names", output_names, [spec.name for spec in self.outputs], required=False)
        for spec in self.inputs:
            if spec.name in inputs:
                found += _array_violations(f"inputs[{spec.name!r}]", spec, inputs[spec.name])
        if not found and self.is_batchable:
            found += _row_violations(inputs)
        return found


def _encode(texts: Array, spec: TensorSpec) -> Array:
    unlisted = 0 if spec.class_names[0] == "" else None
    codes = [spec.codes.get(text, unlisted) for text in texts.ravel().tolist()]
    if None in codes:
        return texts  # `violations` says which
    return np.array(codes, dtype=spec.data_type.dtype).reshape(texts.shape)


def _unlisted(array: Array, spec: TensorSpec) -> str | None:
    return next((text for text in array.ravel().tolist() if text not in spec.codes), None)


def _name_violations(
    field: str, given: Mapping[str, object] | Sequence[str], known: list[str], required: bool
) -> list[Violation]:
    names = ", ".join(known)
    found = [Violation(field, f"{name!r} is not one of {names}") for name in given if name not in known]
    if required:
        found += [Violation(field, f"{name!r} is missing") for name in known if name not in given]
    return found


def _array_violations(field: str, spec: TensorSpec, array: Array) -> list[Violation]:
    if spec.takes_text and array.dtype == object and (text := _unlisted(array, spec)) is not None:
        return [Violation(field, f"{text!r} is not one of {_listed(spec.class_names)}")]
    if array.dtype != spec.data_type.dtype:
        have = _BY_DTYPE.get(array.dtype, array.dtype)
        return [Violation(f"{field}.data_type", f"is {have}, must be {spec.data_type}")]
    fits = len(array.shape) == len(spec.shape) and all(
        want in (-1, have) for want, have in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        want = ", ".join("any" if length == -1 else str(length) for length in spec.shape)
        return [Violation(f"{field}.shape", f"is [{', '.join(map(str, array.shape))}], must be [{want}]")]
    if array.size == 0:
        return [Violation(f"{field}.shape", f"is [{', '.join(map(str, array.shape))}]: there is nothing to compute")]
    if spec.finite_only and spec.data_type.is_floating and not np.isfinite(array).all():
        return [Violation(field, "holds NaN or infinity, which this model refuses")]
    return []


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _row_violations(inputs: Tensors) -> list[Violation]:
    rows = {name: array.shape[0] for name, array in inputs.items()}
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in rows.items())
        return [Violation("inputs", f"all inputs must have the same number of rows, got {counts}")]
    return []
