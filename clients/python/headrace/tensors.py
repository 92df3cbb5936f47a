"""NumPy arrays to the contract's tensors and back, and which arrays a model's signature accepts.

Knows no connection.  An array is converted to the type that a model wants when nothing is lost, with one exception,
made because NumPy's own default is float64: floating-point numbers are rounded to a narrower floating-point type,
unless they would overflow.  Everything else is an error before anything is sent.

BF16 and FP8 need no further package: they arrive as float32, which holds each of their values exactly.  float32 is
rounded to BF16 on the way out; for FP8, send arrays of `ml_dtypes`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headrace.errors import InvalidTensor, ServerFault
from headrace.evidence import Evidence, Violation
from headrace.type.v1.tensor_pb2 import DataType, StringValues, Tensor, TensorSpec

Array: TypeAlias = NDArray[Any]

_DTYPES: dict[int, np.dtype[Any]] = {
    DataType.DATA_TYPE_FP32: np.dtype("<f4"),
    DataType.DATA_TYPE_FP64: np.dtype("<f8"),
    DataType.DATA_TYPE_FP16: np.dtype("<f2"),
    DataType.DATA_TYPE_INT8: np.dtype("i1"),
    DataType.DATA_TYPE_INT16: np.dtype("<i2"),
    DataType.DATA_TYPE_INT32: np.dtype("<i4"),
    DataType.DATA_TYPE_INT64: np.dtype("<i8"),
    DataType.DATA_TYPE_UINT8: np.dtype("u1"),
    DataType.DATA_TYPE_UINT16: np.dtype("<u2"),
    DataType.DATA_TYPE_UINT32: np.dtype("<u4"),
    DataType.DATA_TYPE_UINT64: np.dtype("<u8"),
    DataType.DATA_TYPE_BOOL: np.dtype("?"),
}
_DATA_TYPES = {dtype: data_type for data_type, dtype in _DTYPES.items()}
# Types that NumPy does not have, by the names that ml_dtypes gives them, and the bytes of one element.
_FOREIGN = {
    "bfloat16": (DataType.DATA_TYPE_BF16, 2),
    "float8_e4m3fn": (DataType.DATA_TYPE_FP8_E4M3, 1),
    "float8_e5m2": (DataType.DATA_TYPE_FP8_E5M2, 1),
}
_SMALL_FLOATS = frozenset(data_type for data_type, _ in _FOREIGN.values())
_TEXT_KINDS = "UOT"


def type_name(data_type: int) -> str:
    """ "FP32" for DATA_TYPE_FP32."""
    try:
        return DataType.Name(DataType.ValueType(data_type)).removeprefix("DATA_TYPE_")
    except ValueError:
        return f"type {data_type}"


def to_tensor(array: ArrayLike) -> Tensor:
    """The contract's tensor of an array, as bytes; text as strings.  Raises TypeError for other objects and dates."""
    values = np.asarray(array)
    if values.dtype.kind in _TEXT_KINDS:
        texts = values.ravel().tolist()
        if wrong := next((text for text in texts if not isinstance(text, str)), None):
            raise TypeError(f"an array of objects must hold text, this one holds {type(wrong).__name__}")
        return Tensor(data_type=DataType.DATA_TYPE_STRING, shape=values.shape, strings=StringValues(values=texts))
    data_type = _data_type_of(values.dtype)
    if data_type is None:
        raise TypeError(f"NumPy's {values.dtype} has no counterpart in the contract")
    if data_type in _DTYPES:
        values = values.astype(_DTYPES[data_type], copy=False)  # little-endian, whatever it was
    return Tensor(data_type=data_type, shape=values.shape, data=values.tobytes())


def from_tensor(tensor: Tensor) -> Array:
    """The array of a tensor: a copy of its own, writable.  Text becomes an array of `str` objects.

    Raises ServerFault when the content does not fill the shape.
    """
    shape, count = tuple(tensor.shape), math.prod(tensor.shape)
    try:
        return _elements(tensor, count).reshape(shape)
    except (ValueError, OverflowError) as error:
        kind = type_name(tensor.data_type)
        raise ServerFault(
            f"the server sent a {kind} tensor whose content does not fill its shape {list(shape)}"
        ) from error


def _elements(tensor: Tensor, count: int) -> Array:
    match tensor.WhichOneof("content"):
        case "strings":
            return np.array([*tensor.strings.values, None], dtype=object)[:-1]  # one more, so that it stays flat
        case "data":
            return _decode(tensor.data, tensor.data_type, count)
        case form:
            values = tensor.ints.values if form == "ints" else tensor.floats.values
            return np.array(values, dtype=_DTYPES.get(tensor.data_type, np.dtype("<f4")))


def _decode(data: bytes, data_type: int, count: int) -> Array:
    if data_type == DataType.DATA_TYPE_BF16:
        halves = np.frombuffer(data, dtype="<u2", count=-1)
        widened: Array = (halves.astype("<u4") << 16).view("<f4")
        return widened
    if data_type in _SMALL_FLOATS:
        exponent_bits = 4 if data_type == DataType.DATA_TYPE_FP8_E4M3 else 5
        small: Array = _fp8_values(exponent_bits)[np.frombuffer(data, dtype="u1")]
        return small
    if data_type not in _DTYPES:
        raise ValueError(f"{count} elements of an unknown type")
    return np.frombuffer(bytearray(data), dtype=_DTYPES[data_type])


def _fp8_values(exponent_bits: int) -> Array:
    """What each of the 256 patterns of an 8-bit float stands for (OCP 8-bit Floating Point Specification, rev. 1.0)."""
    mantissa_bits = 7 - exponent_bits
    bias = 2 ** (exponent_bits - 1) - 1
    patterns = np.arange(256)
    exponent = (patterns >> mantissa_bits) & (2**exponent_bits - 1)
    fraction = (patterns & (2**mantissa_bits - 1)) / 2**mantissa_bits
    magnitude = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - bias))
    if exponent_bits == 4:  # finite only: the one pattern of all ones is NaN
        magnitude[(patterns & 0x7F) == 0x7F] = np.nan
    else:
        magnitude[exponent == 31] = np.where(fraction[exponent == 31] == 0, np.inf, np.nan)
    values: Array = np.where(patterns < 128, magnitude, -magnitude).astype("<f4")
    return values


def fit_inputs(inputs: Mapping[str, ArrayLike], signature: Sequence[TensorSpec], model: str) -> dict[str, Tensor]:
    """The tensors that `model` wants, from the arrays that a caller has.  Raises InvalidTensor with all violations."""
    wanted = {spec.name: spec for spec in signature}
    violations = [
        Violation("inputs", f"{name!r} is not an input of {model}; these are: {', '.join(wanted)}")
        for name in inputs
        if name not in wanted
    ]
    violations += [Violation("inputs", f"{name!r} is missing") for name in wanted if name not in inputs]
    tensors: dict[str, Tensor] = {}
    for name, spec in wanted.items():
        if name in inputs:
            try:
                tensors[name] = _fit(np.asarray(inputs[name]), spec)
            except (TypeError, ValueError) as error:
                violations.append(Violation(f"inputs[{name!r}]", str(error)))
    if violations:
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        evidence = Evidence(metadata={"model": model}, violations=tuple(violations))
        raise InvalidTensor(f"{violations[0]}{more}", evidence=evidence)
    return tensors


def _fit(array: Array, spec: TensorSpec) -> Tensor:
    _check_shape(array.shape, spec)
    if spec.data_type == DataType.DATA_TYPE_BF16 and array.dtype.name != "bfloat16":
        return Tensor(data_type=spec.data_type, shape=array.shape, data=_to_bf16(_cast(array, np.dtype("<f4"))))
    if spec.class_names and array.dtype.kind in _TEXT_KINDS:
        return to_tensor(array)  # the server knows the number that stands for each text
    if spec.data_type == DataType.DATA_TYPE_STRING:
        if array.dtype.kind not in _TEXT_KINDS:
            raise TypeError(f"is {array.dtype}, must be text")
        return to_tensor(array)
    if spec.data_type in _SMALL_FLOATS:
        if _data_type_of(array.dtype) != spec.data_type:
            raise TypeError(f"is {array.dtype}, must be {type_name(spec.data_type)}: send an array of ml_dtypes")
        return to_tensor(array)
    return to_tensor(_cast(array, _DTYPES[spec.data_type]))


def _check_shape(shape: tuple[int, ...], spec: TensorSpec) -> None:
    fits = len(shape) == len(spec.shape) and all(
        want in (-1, have) for want, have in zip(spec.shape, shape, strict=True)
    )
    if fits:
        return
    want = ", ".join("any" if length == -1 else str(length) for length in spec.shape)
    hint = "; a single row needs a first axis: array[None]" if len(shape) + 1 == len(spec.shape) else ""
    raise ValueError(f"has the shape [{', '.join(map(str, shape))}], must be [{want}]{hint}")


def _cast(array: Array, want: np.dtype[Any]) -> Array:
    """The array in the wanted type.  Raises TypeError, which says how to convert, where something would be lost."""
    have = array.dtype
    is_count_to_float = have.kind in "iu" and want.kind == "f"  # NumPy calls int64 to float64 safe; it rounds
    if have == want or (np.can_cast(have, want, "safe") and not is_count_to_float):
        return array.astype(want, copy=False)
    if have.kind == "f" and want.kind == "f":
        with np.errstate(over="ignore"):
            cast = array.astype(want)
        if np.isinf(cast).sum() > np.isinf(array).sum():
            raise TypeError(f"is {have} with values too large for the {want.name} that the model takes")
        return cast
    if have.kind in "iu" and want.kind in "iuf":
        with np.errstate(over="ignore", invalid="ignore"):
            cast = array.astype(want)
            is_exact = bool((cast.astype(have) == array).all() and ((cast < 0) == (array < 0)).all())
        if is_exact:
            return cast
        raise TypeError(f"is {have} with values that {want.name}, which the model takes, cannot hold exactly")
    raise TypeError(f"is {have}, must be {want.name}: convert it with .astype({want.name!r}) if that is what you mean")


def _to_bf16(array: Array) -> bytes:
    """The upper half of each float32, rounded to the nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(array).view("<u4")
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF).astype("<u4")) >> 16
    return np.where(np.isnan(array), np.uint32(0x7FC0), rounded).astype("<u2").tobytes()


def _data_type_of(dtype: np.dtype[Any]) -> DataType.ValueType | None:
    if dtype.name in _FOREIGN:
        return _FOREIGN[dtype.name][0]
    return _DATA_TYPES.get(dtype.newbyteorder("<"))  # type: ignore[return-value]  # keys are numbers of the enum
