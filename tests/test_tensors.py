from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st

from headrace_server.errors import Violation
from headrace_server.tensors import DataType, Signature, Tensors, TensorSpec

ROWS = Signature(
    inputs=(
        TensorSpec(name="x", data_type=DataType.FP32, shape=(-1, 3), finite_only=True),
        TensorSpec(name="k", data_type=DataType.INT64, shape=(-1,)),
    ),
    outputs=(TensorSpec(name="y", data_type=DataType.FP32, shape=(-1, 2)),),
)


BROKEN = "inputs['x']: holds NaN or infinity, which this model refuses"


def inputs(num_rows: int = 2, **changed: Any) -> dict[str, Any]:
    return {"x": np.zeros((num_rows, 3), np.float32), "k": np.zeros(num_rows, np.int64)} | changed


def told(found: list[Violation]) -> list[str]:
    return [f"{violation.field}: {violation.description}" for violation in found]


def test_every_type_of_the_contract_has_one_type_of_numpy() -> None:
    assert len({data_type.dtype for data_type in DataType}) == len(DataType)
    for data_type in DataType:
        assert DataType.of(data_type.dtype) is data_type


def test_any_order_of_bytes_is_the_same_type() -> None:
    assert DataType.of(np.dtype(">f4")) is DataType.FP32
    assert DataType.of(np.dtype(">i8")) is DataType.INT64
    assert DataType.of(np.dtype("<U5")) is DataType.STRING


@pytest.mark.parametrize("dtype", ["c16", "M8[s]", "S3", [("a", "i4")], ml_dtypes.float8_e4m3b11fnuz])
def test_a_type_that_the_contract_does_not_have_is_a_key_error(dtype: Any) -> None:
    with pytest.raises(KeyError):
        DataType.of(np.dtype(dtype))


def test_what_fits_has_no_violations() -> None:
    assert ROWS.violations(inputs()) == []
    assert ROWS.violations(inputs(), ["y"]) == []


@pytest.mark.parametrize(
    ("given", "output_names", "said"),
    [
        ({}, [], ["inputs: 'x' is missing", "inputs: 'k' is missing"]),
        (inputs(z=np.zeros(2)), [], ["inputs: 'z' is not one of x, k"]),
        (inputs(), ["q"], ["output_names: 'q' is not one of y"]),
        (inputs(x=np.zeros((2, 3))), [], ["inputs['x'].data_type: is FP64, must be FP32"]),
        (inputs(x=np.zeros((2, 3), complex)), [], ["inputs['x'].data_type: is complex128, must be FP32"]),
        (inputs(x=np.zeros((2, 3), ">f4")), [], ["inputs['x'].data_type: is >f4, must be FP32"]),
        (inputs(x=np.zeros((2, 4), np.float32)), [], ["inputs['x'].shape: is [2, 4], must be [any, 3]"]),
        (inputs(x=np.zeros(3, np.float32)), [], ["inputs['x'].shape: is [3], must be [any, 3]"]),
        (inputs(x=np.float32(3)), [], ["inputs['x'].shape: is [], must be [any, 3]"]),
        (inputs(0), [], ["inputs['x'].shape: is [0, 3]: there is nothing to compute",
                         "inputs['k'].shape: is [0]: there is nothing to compute"]),
        (inputs(k=np.zeros(3, np.int64)), [], ["inputs: all inputs must have the same number of rows, got x 2, k 3"]),
        (inputs(x=np.full((2, 3), np.nan, np.float32)), [], [BROKEN]),
        (inputs(x=np.full((2, 3), -np.inf, np.float32)), [], [BROKEN]),
        (inputs(x=np.zeros(1), k=np.zeros(1)), ["q"],
         ["output_names: 'q' is not one of y", "inputs['x'].data_type: is FP64, must be FP32",
          "inputs['k'].data_type: is FP64, must be INT64"]),
    ],
)  # fmt: skip
def test_everything_that_does_not_fit_is_told_at_once(given: Tensors, output_names: list[str], said: list[str]) -> None:
    assert told(ROWS.violations(given, output_names)) == said


@pytest.mark.parametrize("data_type", [data_type for data_type in DataType if data_type.is_floating])
def test_finite_only_holds_for_every_floating_type(data_type: DataType) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", data_type=data_type, shape=(-1,), finite_only=True),), outputs=()
    )
    fine = np.ones(3, np.float32).astype(data_type.dtype)
    broken = np.array([1, np.nan, 1], np.float32).astype(data_type.dtype)

    assert signature.violations({"x": fine}) == []
    assert len(signature.violations({"x": broken})) == 1


def test_finite_only_means_nothing_for_other_types() -> None:
    signature = Signature(
        inputs=(TensorSpec(name="s", data_type=DataType.STRING, shape=(-1,), finite_only=True),), outputs=()
    )

    assert signature.violations({"s": np.array(["a"], object)}) == []


@pytest.mark.parametrize(
    ("input_shape", "output_shape", "is_batchable"),
    [((-1, 3), (-1,), True), ((2, 3), (-1,), False), ((-1,), (1,), False), ((-1,), (), False), ((3, -1), (-1,), False)],
)
def test_rows_can_be_shared_when_every_first_axis_is_free(
    input_shape: tuple[int, ...], output_shape: tuple[int, ...], is_batchable: bool
) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", data_type=DataType.FP32, shape=input_shape),),
        outputs=(TensorSpec(name="y", data_type=DataType.FP32, shape=output_shape),),
    )

    assert signature.is_batchable is is_batchable


SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@given(SHAPES, SHAPES, st.data())
def test_a_shape_fits_where_every_axis_is_free_or_equal(
    have: tuple[int, ...], other: tuple[int, ...], data: st.DataObject
) -> None:
    want = tuple(data.draw(st.sampled_from([-1, length])) for length in (data.draw(st.sampled_from([have, other]))))
    signature = Signature(inputs=(TensorSpec(name="x", data_type=DataType.INT8, shape=want),), outputs=())
    fits = len(want) == len(have) and all(free in (-1, length) for free, length in zip(want, have, strict=True))

    found = signature.violations({"x": np.zeros(have, np.int8)})

    assert (found == []) == (fits and 0 not in have)


SPECS = st.builds(TensorSpec, name=st.text(), data_type=st.sampled_from(DataType), shape=SHAPES)


@given(st.builds(Signature, inputs=st.lists(SPECS).map(tuple), outputs=st.lists(SPECS).map(tuple)))
def test_a_signature_survives_being_stored(signature: Signature) -> None:
    assert Signature.model_validate_json(signature.model_dump_json()) == signature


CATEGORIES = Signature(
    inputs=(TensorSpec(name="colour", data_type=DataType.INT64, shape=(-1,), class_names=("", "green", "red")),),
    outputs=(TensorSpec(name="y", data_type=DataType.FP32, shape=(-1,)),),
)


def test_text_stands_for_the_numbers_of_an_input_that_lists_it() -> None:
    given = {"colour": np.array(["red", "green", "mauve"], dtype=object)}

    encoded = CATEGORIES.encode_text(given)

    np.testing.assert_array_equal(encoded["colour"], np.array([2, 1, 0]))
    assert encoded["colour"].dtype == np.int64
    assert CATEGORIES.violations(encoded) == []


def test_text_that_is_not_listed_is_refused_where_nothing_stands_for_it() -> None:
    strict = Signature(
        inputs=(CATEGORIES.inputs[0].model_copy(update={"class_names": ("green", "red")}),), outputs=CATEGORIES.outputs
    )

    encoded = strict.encode_text({"colour": np.array(["red", "mauve"], dtype=object)})

    assert told(strict.violations(encoded)) == ["inputs['colour']: 'mauve' is not one of green, red"]


def test_numbers_and_inputs_without_classes_are_left_as_they_are() -> None:
    given = inputs()

    assert ROWS.encode_text(given) is given
    numbers = {"colour": np.array([1, 2])}
    assert CATEGORIES.encode_text(numbers) is numbers
