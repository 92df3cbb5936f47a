"""An answer comes back bit for bit, and nothing comes back that is not an answer."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as arrays

from headrace_server.inference.cache.entry import Unreadable, decode, encode
from headrace_server.tensors import Array, DataType, Signature, TensorSpec

SIGNATURE = Signature(
    inputs=(),
    outputs=(
        TensorSpec(name="scores", data_type=DataType.FP32, shape=(-1, 2)),
        TensorSpec(name="label", data_type=DataType.STRING, shape=(-1,)),
    ),
)


def answer(num_rows: int = 2) -> dict[str, Array]:
    return {
        "scores": np.arange(2 * num_rows, dtype=np.float32).reshape(-1, 2),
        "label": np.array([*(f"ä{row}" for row in range(num_rows)), None], object)[:-1],
    }


@given(arrays.arrays(np.float32, st.tuples(st.integers(0, 5), st.just(2))))
def test_numbers_come_back_bit_for_bit_nan_too(scores: Array) -> None:
    read = decode(encode({"scores": scores}, 5.0), SIGNATURE, ("scores",))

    assert read.outputs["scores"].tobytes() == scores.tobytes()
    assert (read.outputs["scores"].shape, read.made_at) == (scores.shape, 5.0)


def test_text_and_the_order_that_is_asked_for_come_back() -> None:
    read = decode(encode(answer(), 0), SIGNATURE, ("label", "scores"))

    assert list(read.outputs) == ["label", "scores"]
    assert read.outputs["label"].tolist() == ["ä0", "ä1"]


def test_types_that_numpy_has_not_come_back() -> None:
    signature = Signature(inputs=(), outputs=(TensorSpec(name="y", data_type=DataType.BF16, shape=(-1,)),))
    values = np.array([1.5, -2], ml_dtypes.bfloat16)

    assert decode(encode({"y": values}, 0), signature, ()).outputs["y"].tolist() == [1.5, -2]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\n", b"{}\n", b"[]\n", b"null\n", b'{"made_at": 0, "outputs": 3}\n', pickle.dumps(answer()),
        encode({"scores": answer()["scores"]}, 0),
        encode(answer(), 0)[:-1], encode(answer(), 0) + b"x",
        encode({**answer(), "scores": np.zeros((2, 3), np.float32)}, 0),
        encode({**answer(), "scores": np.zeros((2, 2), np.float64)}, 0),
        encode({**answer(), "scores": np.zeros(2, np.float32)}, 0),
        encode({**answer(), "more": np.zeros(2, np.float32)}, 0),
        encode(answer(), 0).replace(b"[2, 2]", b"[-2, 2]"), encode(answer(), 0).replace(b"[2, 2]", b'["2", 2]'),
        encode(answer(), 0).replace(b'"\\u00e40"', b"0         "),
        b"[" * 100_000 + b"\n",
    ],
)  # fmt: skip
def test_what_is_not_an_answer_of_this_version_is_unreadable(content: bytes) -> None:
    with pytest.raises(Unreadable):
        decode(content, SIGNATURE, ())


@given(st.binary(max_size=200), st.integers(0, 400))
def test_noise_is_read_as_an_answer_or_refused_and_nothing_else(noise: bytes, at: int) -> None:
    content = encode(answer(), 0)
    for changed in (noise, content[:at] + noise + content[at + len(noise) :]):
        try:
            read = decode(changed, SIGNATURE, ())
        except Unreadable:
            continue
        assert SIGNATURE.outputs[0].data_type.dtype == read.outputs["scores"].dtype
