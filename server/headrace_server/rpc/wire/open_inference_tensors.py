"""Tensors of the Open Inference Protocol and NumPy arrays, both ways.

All tensors of a message travel raw, or all in typed contents.  BYTES is the house's STRING, as UTF-8.  FP16, BF16 and
the FP8 types, which the protocol does not know and which go under the house's own names, travel raw only.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from headrace_server.errors import Violation
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as pb
from headrace_server.rpc.wire.tensors import Flat, bytes_of, count_elements, flat_from_bytes, wrong_count
from headrace_server.tensors import Array, DataType, Tensors

_LENGTH = struct.Struct("<I")
_NAMES = {data_type: "BYTES" if data_type is DataType.STRING else data_type.value for data_type in DataType}
_TYPES = {name: data_type for data_type, name in _NAMES.items()}
# Where the elements of each type travel, and as what; types that are not here travel raw only.
_FIELDS: dict[DataType, tuple[str, type[np.generic]]] = {
    DataType.BOOL: ("bool_contents", np.bool_),
    DataType.INT8: ("int_contents", np.int32),
    DataType.INT16: ("int_contents", np.int32),
    DataType.INT32: ("int_contents", np.int32),
    DataType.INT64: ("int64_contents", np.int64),
    DataType.UINT8: ("uint_contents", np.uint32),
    DataType.UINT16: ("uint_contents", np.uint32),
    DataType.UINT32: ("uint_contents", np.uint32),
    DataType.UINT64: ("uint64_contents", np.uint64),
    DataType.FP32: ("fp32_contents", np.float32),
    DataType.FP64: ("fp64_contents", np.float64),
    DataType.STRING: ("bytes_contents", np.object_),
}
_NARROW = {DataType.INT8, DataType.INT16, DataType.UINT8, DataType.UINT16}


def datatype_of(data_type: DataType) -> str:
    """The protocol's name of a type."""
    return _NAMES[data_type]


def num_singles(request: pb.ModelInferRequest) -> int:
    """How many elements of a request have to be read one by one; at most, for raw text."""
    if not request.raw_input_contents:
        return sum(len(values) for tensor in request.inputs for _, values in tensor.contents.ListFields())
    texts = (index for index, tensor in enumerate(request.inputs) if tensor.datatype == "BYTES")
    raw = request.raw_input_contents
    return sum(len(raw[index]) // _LENGTH.size for index in texts if index < len(raw))


def tensors_from_request(request: pb.ModelInferRequest) -> tuple[Tensors, list[Violation]]:
    """Arrays by name, and everything that is wrong with the others."""
    if shared := [tensor.name for tensor in request.inputs if "shared_memory_region" in tensor.parameters]:
        problem = "lies in shared memory, which this server does not read: send the elements"
        return {}, [Violation(f'inputs["{name}"]', problem) for name in shared]
    violations: list[Violation] = []
    raw: Sequence[bytes] = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        violations.append(Violation("raw_input_contents", f"has {len(raw)} entries for {len(request.inputs)} inputs"))
    arrays: dict[str, Array] = {}
    seen: set[str] = set()
    for index, tensor in enumerate(request.inputs):
        field = f'inputs["{tensor.name}"]'
        if tensor.name in seen:
            violations.append(Violation(field, "is given twice"))
            continue
        seen.add(tensor.name)
        array = _read_tensor(tensor, raw, index, field, violations)
        if array is not None:
            arrays[tensor.name] = array
    return arrays, violations


def must_be_raw(outputs: Tensors) -> bool:
    """Whether a type among them has no field of its own."""
    return any(DataType.of(array.dtype) not in _FIELDS for array in outputs.values())


def write_outputs(outputs: Tensors, response: pb.ModelInferResponse, *, is_raw: bool) -> None:
    """Fill in the outputs of a response."""
    for name, array in outputs.items():
        data_type = DataType.of(array.dtype)
        output = response.outputs.add(name=name, datatype=_NAMES[data_type], shape=array.shape)
        if is_raw:
            response.raw_output_contents.append(
                _join_texts(_texts(array)) if data_type is DataType.STRING else bytes_of(array)
            )
        else:
            field, wide = _FIELDS[data_type]
            values = _texts(array) if data_type is DataType.STRING else array.astype(wide).ravel().tolist()
            getattr(output.contents, field).extend(values)
            output.contents.SetInParent()


def _read_tensor(
    tensor: pb.ModelInferRequest.InferInputTensor,
    raw: Sequence[bytes],
    index: int,
    field: str,
    violations: list[Violation],
) -> Array | None:
    data_type = _TYPES.get(tensor.datatype)
    count = count_elements(tensor.shape, field, data_type, violations)
    if data_type is None:
        violations.append(Violation(f"{field}.datatype", f"is {tensor.datatype!r}, must be one of {', '.join(_TYPES)}"))
    if data_type is None or count is None:
        return None
    where = f"{field}.contents"
    if raw and tensor.contents.ByteSize():
        violations.append(
            Violation(where, "must be empty when raw_input_contents is used: all inputs are raw, or none")
        )
        return None
    if raw:
        if index >= len(raw):
            return None  # it is said already that some are missing
        where = f"raw_input_contents[{index}]"
        content = raw[index]
        is_text = data_type is DataType.STRING
        flat, problem = _split_texts(content, count) if is_text else flat_from_bytes(content, data_type, count)
    else:
        flat, problem = _from_contents(tensor.contents, data_type, count)
    if flat is None:
        violations.append(Violation(where, problem or ""))
        return None
    return flat.reshape(tuple(tensor.shape))


def _from_contents(contents: pb.InferTensorContents, data_type: DataType, count: int) -> Flat:
    if data_type not in _FIELDS:
        return None, f"{data_type} travels in raw_input_contents only"
    field, wide = _FIELDS[data_type]
    others = [other.name for other, _ in contents.ListFields() if other.name != field]
    if others:
        return None, f"{_NAMES[data_type]} travels in {field}, not in {', '.join(others)}"
    values: Any = getattr(contents, field)
    if len(values) != count:
        return None, wrong_count(len(values), count)
    if data_type is DataType.STRING:
        return _decode(values, count)
    flat: Array = np.fromiter(values, dtype=wide, count=count)
    if data_type in _NARROW:
        limits = np.iinfo(data_type.dtype.name)
        is_outside = (flat < limits.min) | (flat > limits.max)  # type: ignore[operator]  # integers, which mypy cannot see
        if is_outside.any():
            index = int(is_outside.argmax())
            return None, (
                f"value {index}, {flat[index]}, is out of the range of {data_type}, {limits.min} to {limits.max}"
            )
    return flat.astype(data_type.dtype, copy=False), None


def _split_texts(content: bytes, count: int) -> Flat:
    """Elements that each have their length in four bytes before them."""
    if len(content) < count * _LENGTH.size:
        return None, (
            f"holds {len(content):,} bytes; the lengths of {count:,} elements of BYTES alone need "
            f"{count * _LENGTH.size:,}"
        )
    texts: list[bytes] = []
    offset = 0
    for index in range(count):
        start = offset + _LENGTH.size
        if start > len(content):
            return None, f"ends before element {index} of {count:,}"
        (length,) = _LENGTH.unpack_from(content, offset)
        offset = start + length
        if offset > len(content):
            return None, f"element {index} claims {length:,} bytes, only {len(content) - start:,} are left"
        texts.append(content[start:offset])
    if offset != len(content):
        return None, f"{len(content) - offset:,} bytes follow the last of {count:,} elements"
    return _decode(texts, count)


def _decode(contents: Iterable[bytes], count: int) -> Flat:
    texts: list[str] = []
    for index, content in enumerate(contents):
        try:
            texts.append(content.decode())
        except UnicodeDecodeError:
            return None, f"element {index} is not text in UTF-8"
    flat = np.empty(count, dtype=object)
    flat[:] = texts
    return flat, None


def _texts(array: Array) -> list[bytes]:
    return [str(text).encode() for text in array.ravel().tolist()]


def _join_texts(texts: Sequence[bytes]) -> bytes:
    return b"".join(piece for text in texts for piece in (_LENGTH.pack(len(text)), text))
