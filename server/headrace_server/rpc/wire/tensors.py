"""Tensors, between the contract's messages and NumPy arrays, both ways.

Bytes become arrays without a copy: such an array is a read-only view of the bytes of its message.  Values are for
people: they are checked one by one.  Everything that is wrong is found at once, under the paths of the contract.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.type.v1 import tensor_pb2 as pb
from headrace_server.errors import Violation
from headrace_server.tensors import Array, DataType, Tensors, TensorSpec

MOST_AXES = 32
MOST_BYTES = 1 << 48
"""More than any message can hold, and little enough that NumPy can still count it."""

_NUMBERS = {name: pb.DataType.Value(f"DATA_TYPE_{name}") for name in DataType}
_TYPES: dict[int, DataType] = {number: name for name, number in _NUMBERS.items()}


def tensors_from_proto(inputs: Mapping[str, pb.Tensor], field: str = "inputs") -> tuple[Tensors, list[Violation]]:
    """Arrays by name, and everything that is wrong with the others."""
    arrays: dict[str, Array] = {}
    violations: list[Violation] = []
    for name, tensor in inputs.items():
        array = tensor_from_proto(tensor, f'{field}["{name}"]', violations)
        if array is not None:
            arrays[name] = array
    return arrays, violations


def tensor_from_proto(tensor: pb.Tensor, field: str, violations: list[Violation]) -> Array | None:
    """One array, or None when something was added to `violations`."""
    data_type = _TYPES.get(tensor.data_type)
    count = count_elements(tensor.shape, field, data_type, violations)
    if data_type is None:
        violations.append(Violation(f"{field}.data_type", f"must be one of {', '.join(DataType)}"))
    if data_type is None or count is None:
        return None
    form = tensor.WhichOneof("content")
    problem: str | None
    match form:
        case "data":
            flat, problem = flat_from_bytes(tensor.data, data_type, count)
        case "floats":
            flat, problem = _from_floats(tensor.floats.values, data_type, count)
        case "ints":
            flat, problem = _from_ints(tensor.ints.values, data_type, count)
        case "strings":
            flat, problem = _from_strings(tensor.strings.values, data_type, count)
        case _:
            form, flat, problem = "data", None, "one of data, floats, ints and strings must be set"
    if flat is None:
        violations.append(Violation(f"{field}.{form}", problem or ""))
        return None
    return flat.reshape(tuple(tensor.shape))


def tensor_to_proto(array: Array, *, as_values: bool) -> pb.Tensor:
    """One message."""
    message = pb.Tensor()
    write_tensor(array, message, as_values=as_values)
    return message


def write_tensor(array: Array, message: pb.Tensor, *, as_values: bool) -> None:
    """Fill an empty message.  Strings always travel as values; 64-bit integers that values cannot hold as bytes."""
    data_type = DataType.of(array.dtype)
    message.data_type = _NUMBERS[data_type]
    message.shape.extend(array.shape)
    if data_type is DataType.STRING:
        message.strings.values.extend(str(text) for text in array.ravel().tolist())
        message.strings.SetInParent()
    elif as_values and data_type.is_floating:
        with np.errstate(invalid="ignore"):  # a NaN that signals is a NaN
            wide = array.astype(np.float64)
        message.floats.values.extend(wide.ravel().tolist())
        message.floats.SetInParent()
    elif as_values and _fits_values(array):
        message.ints.values.extend(array.astype(np.int64).ravel().tolist())
        message.ints.SetInParent()
    else:
        message.data = bytes_of(array)


def num_values(tensors: Iterable[pb.Tensor]) -> int:
    """How many elements have to be read one by one."""
    return sum(
        len(tensor.floats.values) + len(tensor.ints.values) + len(tensor.strings.values)
        for tensor in tensors
        if tensor.WhichOneof("content") != "data"
    )


def spec_to_proto(spec: TensorSpec) -> pb.TensorSpec:
    """What a model accepts or returns under one name."""
    return pb.TensorSpec(
        name=spec.name,
        data_type=_NUMBERS[spec.data_type],
        shape=spec.shape,
        finite_only=spec.finite_only,
        class_names=spec.class_names,
    )


def count_elements(
    lengths: Sequence[int], field: str, data_type: DataType | None, violations: list[Violation]
) -> int | None:
    """How many elements a shape has, or None when something was added to `violations`."""
    if len(lengths) > MOST_AXES:
        violations.append(Violation(f"{field}.shape", f"has {len(lengths)} axes, at most {MOST_AXES} are possible"))
        return None
    shape = tuple(lengths)
    if any(length < 0 for length in shape):
        violations.append(Violation(f"{field}.shape", f"is {list(shape)}: lengths must not be negative"))
        return None
    size = 1 if data_type is None else data_type.dtype.itemsize
    if math.prod(length for length in shape if length) * size > MOST_BYTES:
        violations.append(Violation(f"{field}.shape", f"is {list(shape)}: no tensor is that large"))
        return None
    return math.prod(shape)


Flat: TypeAlias = tuple[Array | None, str | None]
"""The elements of a tensor in a row, or what is wrong with them."""


def flat_from_bytes(data: bytes, data_type: DataType, count: int) -> Flat:
    """A view of bytes that hold so many numbers, row-major and little-endian."""
    if data_type is DataType.STRING:
        return None, "STRING travels in `strings` only"
    size = data_type.dtype.itemsize
    if len(data) != count * size:
        return None, (
            f"holds {len(data):,} bytes; {count:,} elements of {data_type} at {size} bytes each need {count * size:,}"
        )
    if data_type is DataType.BOOL:
        flags = np.frombuffer(data, dtype=np.uint8)
        if flags.size and flags.max() > 1:
            return None, "each byte of BOOL must be 0 or 1"
        return flags.view(np.bool_), None
    return np.frombuffer(data, dtype=data_type.dtype), None


def bytes_of(array: Array) -> bytes:
    """The elements of an array of numbers, row-major and little-endian."""
    return array.astype(DataType.of(array.dtype).dtype, order="C", copy=False).tobytes()


def _from_floats(values: Sequence[float], data_type: DataType, count: int) -> Flat:
    if not data_type.is_floating:
        return None, f"{data_type} cannot travel in `floats`"
    if len(values) != count:
        return None, wrong_count(len(values), count)
    wide: NDArray[np.float64] = np.fromiter(values, dtype=np.float64, count=count)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        narrow = wide.astype(data_type.dtype)
        # E4M3 has no infinity: what is too large for it becomes NaN.
        is_lost = (np.isinf(narrow) != np.isinf(wide)) | (np.isnan(narrow) != np.isnan(wide))
    if is_lost.any():
        index = int(is_lost.argmax())
        return None, f"value {index}, {wide[index]}, is out of the range of {data_type}"
    return narrow, None


def _from_ints(values: Sequence[int], data_type: DataType, count: int) -> Flat:
    if data_type.is_floating or data_type is DataType.STRING:
        return None, f"{data_type} cannot travel in `ints`"
    if len(values) != count:
        return None, wrong_count(len(values), count)
    wide: NDArray[np.int64] = np.fromiter(values, dtype=np.int64, count=count)
    if data_type is DataType.BOOL:
        low, high = 0, 1
    else:
        limits = np.iinfo(data_type.dtype.name)
        low, high = int(limits.min), min(int(limits.max), 2**63 - 1)
    is_outside = (wide < low) | (wide > high)
    if is_outside.any():
        index = int(is_outside.argmax())
        return None, f"value {index}, {wide[index]}, is out of the range of {data_type}, {low} to {high}"
    return wide.astype(data_type.dtype), None


def _from_strings(values: Sequence[str], data_type: DataType, count: int) -> Flat:
    if data_type is not DataType.STRING:
        return None, f"{data_type} cannot travel in `strings`"
    if len(values) != count:
        return None, wrong_count(len(values), count)
    flat = np.empty(count, dtype=object)
    flat[:] = list(values)
    return flat, None


def wrong_count(have: int, want: int) -> str:
    """What is wrong with so many values in place of so many."""
    return f"holds {have:,} values; the shape needs {want:,}"


def _fits_values(array: Array) -> bool:
    return array.dtype != np.uint64 or array.size == 0 or int(array.max()) < 2**63
