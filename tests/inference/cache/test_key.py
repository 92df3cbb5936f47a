"""Two questions share a key exactly when nothing that could change the answer is different."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as arrays

from headrace_server.inference.cache.key import INLINE_BYTES, fingerprint, key
from headrace_server.inference.prediction import Provenance
from headrace_server.precision import Precision
from headrace_server.tensors import Array

RAN = Provenance("sha256:a", "onnxruntime", Precision.FP32, "cpu", "")
QUESTION = b"question"


@pytest.mark.parametrize(
    "change",
    [{"artifact_digest": "sha256:b"}, {"backend": "torch"}, {"precision": Precision.BF16}, {"device": "cuda:0"}],
)
def test_whatever_would_run_otherwise_has_another_key(change: dict[str, object]) -> None:
    assert key(replace(RAN, **change), QUESTION) != key(RAN, QUESTION)  # type: ignore[arg-type]


def test_where_the_weights_come_from_changes_no_key() -> None:
    assert key(replace(RAN, training_job="trainingJobs/j"), QUESTION) == key(RAN, QUESTION)


SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
ARRAYS: st.SearchStrategy[Array] = st.one_of(
    arrays.arrays(np.float32, SHAPES), arrays.arrays(np.int64, SHAPES), arrays.arrays(np.uint8, SHAPES)
)
INPUTS = st.dictionaries(st.text(max_size=4), ARRAYS, max_size=3)


def same(one: dict[str, Array], other: dict[str, Array]) -> bool:
    return one.keys() == other.keys() and all(
        (array.dtype, array.shape, array.tobytes()) == (other[name].dtype, other[name].shape, other[name].tobytes())
        for name, array in one.items()
    )


@given(INPUTS, INPUTS)
async def test_fingerprints_are_equal_exactly_when_the_inputs_are(
    one: dict[str, Array], other: dict[str, Array]
) -> None:
    assert (await fingerprint(one, ()) == await fingerprint(other, ())) == same(one, other)


@given(INPUTS)
async def test_neither_order_nor_layout_in_memory_matters(inputs: dict[str, Array]) -> None:
    turned = {name: np.asfortranarray(inputs[name]) for name in reversed(inputs)}
    shaped = {name: array.reshape(inputs[name].shape) for name, array in turned.items()}

    assert await fingerprint(shaped, ("a", "b")) == await fingerprint(inputs, ("b", "a"))


@pytest.mark.parametrize(
    "other",
    [
        {"x": np.array([[1, 2]], np.float32)},
        {"x": np.array([1, 2], np.int32)},
        {"x": np.array([1, 2], np.float32).view(np.int32)},
        {"y": np.array([1, 2], np.float32)},
        {"x": np.array([1], np.float32), "y": np.array([2], np.float32)},
    ],
)
async def test_the_same_bytes_under_another_name_shape_or_type_are_another_question(other: dict[str, Array]) -> None:
    assert await fingerprint(other, ()) != await fingerprint({"x": np.array([1, 2], np.float32)}, ())


async def test_text_does_not_run_into_the_text_after_it() -> None:
    one, other = ({"x": np.array(texts, object)} for texts in (["ab", "c"], ["a", "bc"]))

    assert await fingerprint(one, ()) != await fingerprint(other, ())


async def test_the_outputs_that_are_asked_for_belong_to_the_question() -> None:
    inputs: dict[str, Array] = {"x": np.zeros(2, np.float32)}

    assert await fingerprint(inputs, ("y",)) != await fingerprint(inputs, ())


async def test_large_inputs_are_hashed_as_small_ones_are() -> None:
    large = np.arange(INLINE_BYTES, dtype=np.float32)

    assert await fingerprint({"x": large}, ()) == await fingerprint({"x": large.copy()}, ())
    changed = large.copy()
    changed[-1] += 1
    assert await fingerprint({"x": changed}, ()) != await fingerprint({"x": large}, ())
