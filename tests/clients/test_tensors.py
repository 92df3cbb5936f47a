from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as arrays

from headrace.errors import InvalidTensor, ServerFault
from headrace.tensors import fit_inputs, from_tensor, to_tensor
from headrace.type.v1.tensor_pb2 import DataType, FloatValues, IntValues, StringValues, Tensor, TensorSpec

D = DataType
NUMBERS = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]


@given(st.data())
def test_every_array_comes_back_as_it_was(data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(NUMBERS))).newbyteorder(data.draw(st.sampled_from("<>")))
    array = data.draw(arrays.arrays(dtype, arrays.array_shapes(min_dims=0, min_side=0)))
    step = data.draw(st.sampled_from([1, -1, 2])) if array.ndim else 1
    array = array[::step] if array.ndim else array

    back = from_tensor(to_tensor(array))

    np.testing.assert_array_equal(back, array)
    assert back.shape == array.shape
    assert back.dtype == dtype.newbyteorder("<")
    assert back.flags.writeable


@given(st.lists(st.text(max_size=5), max_size=6))
def test_text_comes_back_as_it_was(texts: list[str]) -> None:
    back = from_tensor(to_tensor(np.array([*texts, "end"], dtype=object)[:-1]))

    assert back.tolist() == texts


@pytest.mark.parametrize(
    ("data_type", "dtype"),
    [
        (D.DATA_TYPE_BF16, ml_dtypes.bfloat16),
        (D.DATA_TYPE_FP8_E4M3, ml_dtypes.float8_e4m3fn),
        (D.DATA_TYPE_FP8_E5M2, ml_dtypes.float8_e5m2),
    ],
)
def test_small_floats_arrive_as_float32_with_their_exact_values(data_type: D.ValueType, dtype: Any) -> None:
    width = np.dtype(dtype).itemsize
    patterns = np.arange(2 ** (8 * width), dtype=f"u{width}")
    tensor = Tensor(data_type=data_type, shape=patterns.shape, data=patterns.tobytes())

    np.testing.assert_array_equal(from_tensor(tensor), patterns.view(dtype).astype(np.float32))


@given(arrays.arrays("f4", 7))
def test_bf16_is_rounded_as_everybody_rounds_it(array: Any) -> None:
    spec = TensorSpec(name="x", data_type=D.DATA_TYPE_BF16, shape=[-1])

    sent = from_tensor(fit_inputs({"x": array}, [spec], "models/m")["x"])

    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(sent, array.astype(ml_dtypes.bfloat16).astype("f4"))


def test_arrays_of_small_floats_are_sent_as_they_are() -> None:
    array = np.array([1.5, -2.0]).astype(ml_dtypes.float8_e4m3fn)
    spec = TensorSpec(name="x", data_type=D.DATA_TYPE_FP8_E4M3, shape=[-1])

    tensor = fit_inputs({"x": array}, [spec], "models/m")["x"]

    assert (tensor.data_type, tensor.data) == (D.DATA_TYPE_FP8_E4M3, array.tobytes())


def test_readable_forms_are_read_too() -> None:
    floats = Tensor(data_type=D.DATA_TYPE_FP32, shape=[1, 2], floats=FloatValues(values=[0.5, 2]))
    ints = Tensor(data_type=D.DATA_TYPE_UINT8, shape=[2], ints=IntValues(values=[1, 255]))
    truths = Tensor(data_type=D.DATA_TYPE_BOOL, shape=[2], ints=IntValues(values=[0, 1]))
    texts = Tensor(data_type=D.DATA_TYPE_STRING, shape=[2, 1], strings=StringValues(values=["a", "b"]))

    assert from_tensor(floats).tolist() == [[0.5, 2.0]]
    assert from_tensor(ints).dtype == np.uint8
    assert from_tensor(truths).tolist() == [False, True]
    assert from_tensor(texts).tolist() == [["a"], ["b"]]


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor(data_type=D.DATA_TYPE_FP32, shape=[2], data=b"\0" * 4),
        Tensor(data_type=D.DATA_TYPE_FP32, shape=[1], data=b"\0" * 3),
        Tensor(data_type=D.DATA_TYPE_BF16, shape=[1], data=b"\0" * 3),
        Tensor(data_type=D.DATA_TYPE_STRING, shape=[3], strings=StringValues(values=["a"])),
        Tensor(data_type=99, shape=[1], data=b"\0"),  # type: ignore[arg-type]  # as from a newer server
    ],
)
def test_an_answer_that_does_not_add_up_is_the_servers_fault(tensor: Tensor) -> None:
    with pytest.raises(ServerFault, match="does not fill its shape"):
        from_tensor(tensor)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([1.1, 2.2]), D.DATA_TYPE_FP32),  # NumPy's own default: rounded, as documented
        (np.array([1.1, np.inf, np.nan]), D.DATA_TYPE_FP16),
        (np.array([1, 2**24]), D.DATA_TYPE_FP32),
        (np.array([1, 255]), D.DATA_TYPE_UINT8),
        (np.array([True, False]), D.DATA_TYPE_INT64),
        (np.array([1, 2], dtype=np.uint8), D.DATA_TYPE_FP64),
        ([1, 2], D.DATA_TYPE_FP32),
        (np.array(["a", "b"]), D.DATA_TYPE_STRING),
        (["a", "b"], D.DATA_TYPE_STRING),
    ],
)
def test_types_are_converted_where_nothing_is_lost(values: Any, wanted: D.ValueType) -> None:
    tensor = fit_inputs({"x": values}, [TensorSpec(name="x", data_type=wanted, shape=[-1])], "models/m")["x"]

    assert tensor.data_type == wanted
    back = from_tensor(tensor)
    if wanted == D.DATA_TYPE_STRING:
        assert back.tolist() == list(values)
    else:
        np.testing.assert_array_equal(back, np.asarray(values).astype(back.dtype))


@pytest.mark.parametrize(
    ("values", "wanted", "problem"),
    [
        (np.array([1e300]), D.DATA_TYPE_FP32, "too large"),
        (np.array([2**24 + 1]), D.DATA_TYPE_FP32, "cannot hold exactly"),
        (np.array([2**53 + 1]), D.DATA_TYPE_FP64, "cannot hold exactly"),
        (np.array([256]), D.DATA_TYPE_UINT8, "cannot hold exactly"),
        (np.array([-1]), D.DATA_TYPE_UINT64, "cannot hold exactly"),
        (np.array([2**64 - 1], dtype=np.uint64), D.DATA_TYPE_INT64, "cannot hold exactly"),
        (np.array([1.0]), D.DATA_TYPE_INT64, r"\.astype\('int64'\)"),
        (np.array([1]), D.DATA_TYPE_BOOL, r"\.astype\('bool'\)"),
        (np.array([1]), D.DATA_TYPE_STRING, "must be text"),
        (np.array(["a"]), D.DATA_TYPE_FP32, "must be float32"),
        (np.array([1 + 2j]), D.DATA_TYPE_FP32, "must be float32"),
        (np.array([1.0], dtype="f4"), D.DATA_TYPE_FP8_E5M2, "ml_dtypes"),
        (np.array([object()]), D.DATA_TYPE_STRING, "must hold text"),
        (np.array([[1.0]]), D.DATA_TYPE_FP32, r"\[1, 1\], must be \[any\]"),
        (np.array(1.0), D.DATA_TYPE_FP32, r"array\[None\]"),
        ([[1.0], [1.0, 2.0]], D.DATA_TYPE_FP32, "inhomogeneous"),
    ],
)
def test_what_would_lose_something_is_refused_with_advice(values: Any, wanted: D.ValueType, problem: str) -> None:
    with pytest.raises(InvalidTensor, match=problem) as caught:
        fit_inputs({"x": values}, [TensorSpec(name="x", data_type=wanted, shape=[-1])], "models/m")

    assert caught.value.violations[0].field == "inputs['x']"


def test_everything_that_does_not_fit_is_said_at_once() -> None:
    signature = [TensorSpec(name=name, data_type=D.DATA_TYPE_FP32, shape=[-1, 2]) for name in "ab"]

    with pytest.raises(InvalidTensor, match="and 2 more") as caught:
        fit_inputs({"a": [1.0], "c": [1.0]}, signature, "models/m")

    assert {violation.field for violation in caught.value.violations} == {"inputs", "inputs['a']"}
    assert len(caught.value.violations) == 3


def test_dates_have_no_counterpart() -> None:
    with pytest.raises(TypeError, match="no counterpart"):
        to_tensor(np.array(["2024-01-01"], dtype="datetime64[D]"))
