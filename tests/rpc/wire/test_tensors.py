from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as arrays_of

from headrace.type.v1 import tensor_pb2 as pb
from headrace_server.errors import Violation
from headrace_server.rpc.wire.tensors import tensor_from_proto, tensor_to_proto
from headrace_server.tensors import Array, DataType

PLAIN = [
    kind for kind in DataType if kind not in (DataType.STRING, DataType.BF16, DataType.FP8_E4M3, DataType.FP8_E5M2)
]
EXOTIC = [DataType.BF16, DataType.FP8_E4M3, DataType.FP8_E5M2]
SHAPES = arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def read(tensor: pb.Tensor) -> tuple[Array | None, list[Violation]]:
    violations: list[Violation] = []
    return tensor_from_proto(tensor, "t", violations), violations


def number_of(data_type: DataType) -> Any:
    return pb.DataType.Value(f"DATA_TYPE_{data_type}")


@given(st.data(), st.sampled_from(PLAIN), st.booleans())
def test_arrays_survive_the_wire(data: st.DataObject, data_type: DataType, as_values: bool) -> None:
    array = data.draw(arrays_of.arrays(data_type.dtype, SHAPES))

    back, violations = read(tensor_to_proto(array, as_values=as_values))

    assert violations == []
    assert back is not None
    assert back.dtype == data_type.dtype
    np.testing.assert_array_equal(back, array)


@given(st.data(), st.sampled_from(EXOTIC), st.booleans())
def test_small_floats_survive_the_wire(data: st.DataObject, data_type: DataType, as_values: bool) -> None:
    array = data.draw(arrays_of.arrays(np.uint8, SHAPES)).astype(np.float32).astype(data_type.dtype)

    back, violations = read(tensor_to_proto(array, as_values=as_values))

    assert violations == []
    assert back is not None
    assert back.dtype == data_type.dtype
    np.testing.assert_array_equal(back.astype(np.float32), array.astype(np.float32))


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]))))
def test_texts_survive_the_wire(texts: list[str]) -> None:
    array = np.array(texts, dtype=object).reshape(-1, 1)

    back, violations = read(tensor_to_proto(array, as_values=False))

    assert violations == []
    assert back is not None
    assert back.tolist() == array.tolist()


def test_bytes_are_not_copied() -> None:
    content = np.arange(6, dtype="<f4").tobytes()
    tensor = pb.Tensor(data_type=pb.DATA_TYPE_FP32, shape=[2, 3], data=content)

    array, _ = read(tensor)

    assert array is not None
    assert not array.flags.owndata
    assert not array.flags.writeable


def test_a_view_that_is_not_contiguous_is_written_in_order() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T

    back, _ = read(tensor_to_proto(array, as_values=False))

    assert back is not None
    np.testing.assert_array_equal(back, array)


def test_big_endian_arrays_are_written_as_little_endian() -> None:
    array = np.array([1.5, -2.0], dtype=">f8")

    assert tensor_to_proto(array, as_values=False).data == np.array([1.5, -2.0], dtype="<f8").tobytes()


def test_numbers_that_values_cannot_hold_travel_as_bytes() -> None:
    array = np.array([2**64 - 1], dtype=np.uint64)

    assert tensor_to_proto(array, as_values=True).WhichOneof("content") == "data"


def floats(data_type: DataType, shape: list[int], values: list[float]) -> pb.Tensor:
    return pb.Tensor(data_type=number_of(data_type), shape=shape, floats=pb.FloatValues(values=values))


def ints(data_type: DataType, shape: list[int], values: list[int]) -> pb.Tensor:
    return pb.Tensor(data_type=number_of(data_type), shape=shape, ints=pb.IntValues(values=values))


BAD = {
    "no type": (pb.Tensor(shape=[1], data=b"1"), "t.data_type", "must be one of"),
    "a type from the future": (pb.Tensor(data_type=99, shape=[1], data=b"1"), "t.data_type", "must be one of"),  # type: ignore[arg-type]
    "no content": (pb.Tensor(data_type=pb.DATA_TYPE_INT8, shape=[0]), "t.data", "must be set"),
    "a negative length": (pb.Tensor(data_type=pb.DATA_TYPE_INT8, shape=[2, -1], data=b""), "t.shape", "negative"),
    "too many axes": (pb.Tensor(data_type=pb.DATA_TYPE_INT8, shape=[1] * 33, data=b"1"), "t.shape", "33 axes"),
    "an absurd shape": (
        pb.Tensor(data_type=pb.DATA_TYPE_FP64, shape=[2**62, 2**62, 2**62], data=b""), "t.shape", "that large",
    ),
    "an absurd shape that holds nothing": (
        pb.Tensor(data_type=pb.DATA_TYPE_FP64, shape=[0, 2**62, 2**62], data=b""), "t.shape", "that large",
    ),
    "a product that wraps to the right size": (
        pb.Tensor(data_type=pb.DATA_TYPE_INT8, shape=[2**32, 2**32], data=b""), "t.shape", "that large",
    ),
    "too few bytes": (pb.Tensor(data_type=pb.DATA_TYPE_FP32, shape=[2], data=b"1234"), "t.data", "need 8"),
    "too many bytes": (pb.Tensor(data_type=pb.DATA_TYPE_FP32, data=b"12345678"), "t.data", "need 4"),
    "a flag that is neither": (pb.Tensor(data_type=pb.DATA_TYPE_BOOL, shape=[2], data=b"\0\2"), "t.data", "0 or 1"),
    "a flag that is neither, for people": (ints(DataType.BOOL, [1], [2]), "t.ints", "0 to 1"),
    "texts as bytes": (pb.Tensor(data_type=pb.DATA_TYPE_STRING, shape=[1], data=b"a"), "t.data", "`strings` only"),
    "texts for numbers": (
        pb.Tensor(data_type=pb.DATA_TYPE_INT8, shape=[1], strings=pb.StringValues(values=["1"])), "t.strings", "INT8",
    ),
    "floats for integers": (floats(DataType.INT32, [1], [1.0]), "t.floats", "INT32"),
    "integers for floats": (ints(DataType.FP32, [1], [1]), "t.ints", "FP32"),
    "integers for texts": (ints(DataType.STRING, [1], [1]), "t.ints", "STRING"),
    "too few values": (floats(DataType.FP32, [3], [1.0]), "t.floats", "needs 3"),
    "too large for half": (floats(DataType.FP16, [2], [1, 1e6]), "t.floats", "value 1"),
    "too large for single": (floats(DataType.FP32, [1], [-1e300]), "t.floats", "value 0"),
    "infinity where there is none": (floats(DataType.FP8_E4M3, [1], [float("inf")]), "t.floats", "value 0"),
    "too large for E4M3": (floats(DataType.FP8_E4M3, [1], [1e4]), "t.floats", "value 0"),
    "too large for a byte": (ints(DataType.INT8, [2], [127, 128]), "t.ints", "-128 to 127"),
    "negative for unsigned": (ints(DataType.UINT64, [1], [-1]), "t.ints", "value 0"),
}  # fmt: skip


@pytest.mark.parametrize(("tensor", "field", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_tensor_is_refused_in_plain_words(tensor: pb.Tensor, field: str, words: str) -> None:
    array, violations = read(tensor)

    assert array is None
    assert [violation.field for violation in violations] == [field]
    assert words in violations[0].description


def test_infinity_and_nan_are_values_like_others() -> None:
    array, violations = read(floats(DataType.FP16, [3], [float("inf"), float("-inf"), float("nan")]))

    assert violations == []
    np.testing.assert_array_equal(array, np.array([np.inf, -np.inf, np.nan], dtype=np.float16))


def test_a_decimal_fraction_is_rounded_to_the_nearest() -> None:
    array, _ = read(floats(DataType.BF16, [1], [0.1]))

    assert array is not None
    assert array[0] == ml_dtypes.bfloat16(0.1)


def test_a_scalar_has_an_empty_shape() -> None:
    array, _ = read(floats(DataType.FP32, [], [2.5]))

    assert array is not None
    assert array.shape == ()


@given(
    st.sampled_from([*pb.DataType.values()]),
    st.lists(st.one_of(st.integers(-3, 5), st.integers(-(2**63), 2**63 - 1)), max_size=5),
    st.binary(max_size=64),
)
def test_no_bytes_break_the_reader(data_type: Any, shape: list[int], data: bytes) -> None:
    array, violations = read(pb.Tensor(data_type=data_type, shape=shape, data=data))

    assert (array is None) == bool(violations)
