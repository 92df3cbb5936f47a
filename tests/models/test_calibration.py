"""Rows that plans are judged with."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from headrace_server.errors import InvalidModel
from headrace_server.models.calibration import (
    MOST_ROWS,
    CalibrationRows,
    bounded,
    can_be_stored,
    draw_rows,
    read_rows,
    write_rows,
)
from headrace_server.tensors import Array, DataType, Signature, TensorSpec

X = TensorSpec(name="x", data_type=DataType.FP32, shape=(-1, 2))
N = TensorSpec(name="n", data_type=DataType.INT64, shape=(-1,))
Y = TensorSpec(name="y", data_type=DataType.FP32, shape=(-1, 3))
SIGNATURE = Signature(inputs=(X, N), outputs=(Y,))


def some(rows: int = 4) -> CalibrationRows:
    return CalibrationRows(
        {"x": np.ones((rows, 2), np.float32), "n": np.arange(rows)}, {"y": np.zeros((rows, 3), np.float32)}
    )


def test_rows_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.safetensors"
    write_rows(some(), path)

    found = read_rows(path, SIGNATURE)

    assert found.num_rows == 4
    assert {name: array.tolist() for name, array in found.inputs.items()} == {
        "x": [[1.0, 1.0]] * 4,
        "n": [0, 1, 2, 3],
    }
    assert (found.outputs["y"].shape, found.targets) == ((4, 3), {})


def test_only_so_many_rows_are_kept_that_the_file_stays_small() -> None:
    wide = TensorSpec(name="x", data_type=DataType.FP32, shape=(-1, 1 << 20))
    signature = Signature(inputs=(wide,), outputs=(Y,))

    assert bounded(some(MOST_ROWS + 9), SIGNATURE).num_rows == MOST_ROWS
    assert bounded(CalibrationRows({"x": np.zeros((20, 1 << 20), np.float32)}), signature).num_rows == 16


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"inputs/x": np.ones((4, 3), np.float32), "inputs/n": np.arange(4)}, r"inputs\['x'\].shape is \[4, 3\]"),
        ({"inputs/x": np.ones((4, 2), np.float32)}, "'n' is missing"),
        ({"inputs/x": np.ones((4, 2), np.float32), "inputs/n": np.arange(3)}, "same number of rows"),
        ({"x": np.ones((4, 2), np.float32)}, "'x', which is no calibration row"),
        (
            {"inputs/x": np.ones((4, 2), np.float32), "inputs/n": np.arange(4), "outputs/y": np.ones((3, 3))},
            "'y' that do not go with its rows",
        ),
    ],
)
def test_rows_that_do_not_fit_say_why(tmp_path: Path, arrays: dict[str, Array], problem: str) -> None:
    path = tmp_path / "rows.safetensors"
    save_file(arrays, str(path))

    with pytest.raises(InvalidModel, match=problem):
        read_rows(path, SIGNATURE)


def test_a_file_that_is_no_safetensors_is_no_calibration(tmp_path: Path) -> None:
    path = tmp_path / "rows.safetensors"
    path.write_bytes(b"garbage")

    with pytest.raises(InvalidModel, match="cannot be read as safetensors"):
        read_rows(path, SIGNATURE)


def test_rows_can_be_drawn_for_any_signature() -> None:
    text = TensorSpec(name="t", data_type=DataType.STRING, shape=(-1,))
    tokens = TensorSpec(name="ids", data_type=DataType.INT32, shape=(-1, -1))
    half = TensorSpec(name="h", data_type=DataType.BF16, shape=(-1, 2))
    signature = Signature(inputs=(X, N, text, tokens, half), outputs=(Y,))

    rows = draw_rows(signature)

    assert signature.violations(rows.inputs) == []
    assert rows.inputs["ids"].shape == (64, 16)
    assert not can_be_stored(signature)
    assert can_be_stored(SIGNATURE)


def test_a_model_without_rows_has_one() -> None:
    fixed = Signature(inputs=(TensorSpec(name="x", data_type=DataType.FP32, shape=(2, 3)),), outputs=(Y,))

    assert draw_rows(fixed).inputs["x"].shape == (2, 3)
