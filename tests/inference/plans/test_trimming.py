"""Padding that nobody reads is not computed."""

from collections.abc import Callable

import numpy as np
from hypothesis import given, strategies as st

from headrace_server.inference.plans.trimming import STEP, find_mask, without_padding
from headrace_server.precision import Precision
from headrace_server.tensors import DataType, Signature, Tensors, TensorSpec

IDS = TensorSpec(name="ids", data_type=DataType.INT64, shape=(-1, -1))
MASK = TensorSpec(name="attention_mask", data_type=DataType.INT64, shape=(-1, -1))
BIAS = TensorSpec(name="bias", data_type=DataType.FP32, shape=(-1, 2))
Y = TensorSpec(name="y", data_type=DataType.FP32, shape=(-1, 1))
SIGNATURE = Signature(inputs=(IDS, MASK, BIAS), outputs=(Y,))


class Program:
    """What the test says, as a session."""

    device, precision = "cpu", Precision.FP32

    def __init__(self, act: Callable[[Tensors], Tensors]) -> None:
        self.act = act

    def run(self, inputs: Tensors) -> Tensors:
        return self.act(inputs)

    def close(self) -> None:
        pass


def masked_mean(inputs: Tensors) -> Tensors:
    mask = inputs["attention_mask"].astype(np.float32)
    mean = (inputs["ids"].astype(np.float32) * mask).sum(1) / np.maximum(mask.sum(1), 1)
    return {"y": mean.astype(np.float32)[:, None]}


def plain_mean(inputs: Tensors) -> Tensors:
    return {"y": inputs["ids"].mean(1).astype(np.float32)[:, None]}


def rows(*lengths: int, width: int = 64) -> Tensors:
    mask = np.array([[1] * length + [0] * (width - length) for length in lengths])
    ids = np.arange(1, mask.size + 1).reshape(mask.shape) * mask
    return {"ids": ids, "attention_mask": mask, "bias": np.zeros((len(lengths), 2), np.float32)}


def test_a_mask_is_believed_only_when_more_padding_changes_nothing() -> None:
    assert find_mask(Program(masked_mean), SIGNATURE, rows(10, 20)) == "attention_mask"
    assert find_mask(Program(plain_mean), SIGNATURE, rows(10, 20)) == ""


def test_answers_that_are_sequences_themselves_are_left_alone() -> None:
    tokens = Signature(inputs=(IDS, MASK), outputs=(Y.model_copy(update={"shape": (-1, -1)}),))
    fixed = Signature(inputs=(IDS.model_copy(update={"shape": (-1, 32)}), MASK), outputs=(Y,))

    assert find_mask(Program(masked_mean), tokens, rows(10)) == ""
    assert find_mask(Program(masked_mean), fixed, rows(10)) == ""


def test_columns_that_no_row_reads_are_cut_away_in_steps() -> None:
    cut = without_padding(rows(3, 17), "attention_mask", SIGNATURE)

    assert cut["ids"].shape == cut["attention_mask"].shape == (2, 2 * STEP)
    assert cut["bias"].shape == (2, 2)


def test_padding_on_the_left_stays() -> None:
    given_rows = {name: array[:, ::-1] for name, array in rows(3).items()}

    assert without_padding(given_rows, "attention_mask", SIGNATURE) is given_rows


@given(st.lists(st.integers(0, 64), min_size=1, max_size=5))
def test_whatever_the_lengths_the_answer_is_the_same(lengths: list[int]) -> None:
    given_rows = rows(*lengths)

    cut = without_padding(given_rows, "attention_mask", SIGNATURE)

    assert cut["ids"].shape[1] - max(lengths) < STEP or cut["ids"].shape[1] == STEP
    assert np.array_equal(masked_mean(cut)["y"], masked_mean(given_rows)["y"])
