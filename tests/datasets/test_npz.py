import io
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from headrace_server.datasets.dataset import Column, DatasetFormat, Description
from headrace_server.datasets.formats import npz_arrays
from headrace_server.datasets.inspection import inspect
from headrace_server.datasets.reading import read_arrays, read_columns
from headrace_server.errors import InvalidDataset, TooLarge
from headrace_server.settings import DatasetSettings
from tests.doubles import contents

PLAIN = contents.npz(
    x=np.arange(12, dtype=np.float32).reshape(3, 4), y=np.array([0, 1, 0]), s=np.array(["a", "bc", "é"])
)


def inspected(folder: Path, content: bytes, limits: DatasetSettings = DatasetSettings()) -> Description:  # noqa: B008
    (folder / "a.npz").write_bytes(content)
    return inspect(folder / "a.npz", DatasetFormat.NPZ, limits)


def npy(array: Any, **options: Any) -> bytes:
    target = io.BytesIO()
    np.lib.format.write_array(target, np.asanyarray(array), **options)
    return target.getvalue()


def test_arrays_are_described_by_their_headers(tmp_path: Path) -> None:
    description = inspected(tmp_path, PLAIN)

    assert description.num_rows == 3
    assert description.columns == (
        Column(name="x", type="float32", shape=(4,)),
        Column(name="y", type="int64"),
        Column(name="s", type="string"),
    )


def test_arrays_in_any_order_of_bytes_and_axes_are_read_alike(tmp_path: Path) -> None:
    array = np.arange(24).reshape(2, 3, 4)
    inspected(tmp_path, contents.npz(a=array, b=array.astype(">i8"), c=np.asfortranarray(array)))

    arrays = read_arrays(tmp_path / "a.npz", ["c", "b", "a"])

    assert list(arrays) == ["c", "b", "a"]
    for found in arrays.values():
        assert found.dtype == np.dtype("=i8")
        assert found.dtype.isnative
        assert found.flags.c_contiguous
        assert (found == array).all()


def test_nan_is_missing_in_arrays_and_null_in_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz_arrays, "BLOCK_ELEMENTS", 2)
    description = inspected(
        tmp_path, contents.npz(a=np.array([1, np.nan, 3, np.nan, 5]), b=np.full((5, 2), np.nan, np.float16))
    )

    columns = read_columns(tmp_path / "a.npz", DatasetFormat.NPZ, ["a"])

    assert [column.num_missing for column in description.columns] == [2, 10]
    assert columns["a"].to_pylist() == [1, None, 3, None, 5]
    assert np.isnan(read_arrays(tmp_path / "a.npz", ["b"])["b"]).all()


def test_arrays_of_one_axis_are_columns_and_others_are_not(tmp_path: Path) -> None:
    inspected(tmp_path, PLAIN)

    columns = read_columns(tmp_path / "a.npz", DatasetFormat.NPZ, ["s", "y"])

    assert {name: column.to_pylist() for name, column in columns.items()} == {"s": ["a", "bc", "é"], "y": [0, 1, 0]}
    assert columns["s"].type == pa.string()
    with pytest.raises(InvalidDataset, match="'x' has 2 axes"):
        read_columns(tmp_path / "a.npz", DatasetFormat.NPZ, ["x"])
    with pytest.raises(InvalidDataset, match="no array 'z'"):
        read_arrays(tmp_path / "a.npz", ["z"])


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("something was unpickled",))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"a": np.array([{}], object)}, "'a' holds objects, which are never unpickled"),
        ({"a": np.array([(1, {})], [("x", "i4"), ("y", "O")])}, "holds objects, which are never unpickled"),
        ({"a": np.zeros(2, [("x", "i4")])}, "elements of type"),
        ({"a": np.zeros(2, complex)}, "elements of type complex128"),
        ({"a": np.zeros(2, "M8[s]")}, "elements of type"),
        ({"a": np.zeros(2, "S3")}, "elements of type"),
        ({"a": np.zeros(2, ml_dtypes.bfloat16)}, "elements of type"),
        ({"a": np.float32(1)}, "has no axis"),
        ({"a": np.zeros(3), "b": np.zeros(2)}, "same number of rows, but 'b' has 2 and 'a' 3"),
        ({"a": np.zeros((0, 3))}, "have no rows"),
        ({"a\n": np.zeros(3)}, "control characters"),
        ({}, "there are no columns"),
    ],
)
@pytest.mark.filterwarnings("ignore:Stored array in format 2.0")
def test_what_is_not_a_plain_array_is_refused_with_the_reason(
    tmp_path: Path, arrays: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidDataset, match=said):
        inspected(tmp_path, contents.npz(**arrays))


def test_nothing_is_ever_unpickled(tmp_path: Path) -> None:
    header = npy(np.array([None], object))[: -len(pickle.dumps(np.array([None], object), 2))]
    for payload in (npy(np.array([Bomb()], object)), header + pickle.dumps(Bomb()), pickle.dumps(Bomb())):
        with pytest.raises(InvalidDataset):
            inspected(tmp_path, contents.archive({"a.npy": payload}))
        with pytest.raises((InvalidDataset, ValueError)):
            read_arrays(tmp_path / "a.npz", ["a"])


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (npy(np.zeros(4))[:-8], "promises 4 elements but holds 3"),
        (npy(np.zeros(4))[:-3], "ends in the middle of an element"),
        (npy(np.zeros(4)) + b"12345678", "promises 4 elements but holds 5"),
        (b"", "no readable header"),
        (npy(np.array(["a"])).replace(b"<U1", b"<U0"), "no elements of any size"),
        (npy(np.zeros(2)).replace(b"(2,), }" + b" " * 50, b"(" * 57), "no readable header"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "no readable header"),
        (npy(np.zeros(2)).replace(b"(2,), }", b"(-2,),}"), "no elements of any size"),
        (npy(np.zeros(2)).replace(b"(2,), }", b"(2.5,)}"), "no readable header"),
        (npy(np.array(["a"])).replace(b"a\0\0\0", b"\xff\xff\xff\xff"), "holds what is not text"),
        (npy(np.array(["a"])).replace(b"a\0\0\0", b"\x00\xd8\x00\x00"), "holds what is not text"),
    ],
)
def test_an_array_that_is_not_what_its_header_says_is_refused(tmp_path: Path, entry: bytes, said: str) -> None:
    with pytest.raises(InvalidDataset, match=said):
        inspected(tmp_path, contents.archive({"a.npy": entry}))


def test_a_header_that_promises_the_world_costs_nothing(tmp_path: Path) -> None:
    huge = npy(np.zeros(2)).replace(b"(2,), }" + b" " * 30, b"(" + b"9" * 30 + b",),  }")
    assert b"9" * 30 in huge

    with pytest.raises(InvalidDataset, match=r"promises 9{30} elements but holds 2"):
        inspected(tmp_path, contents.archive({"a.npy": huge}))


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is(tmp_path: Path) -> None:
    bomb = contents.npz(a=np.zeros(1 << 20), b=np.zeros(1 << 20))
    assert len(bomb) < 1 << 16

    with pytest.raises(TooLarge, match=r"datasets\.max_unpacked_bytes"):
        inspected(tmp_path, bomb, DatasetSettings(max_unpacked_bytes=12 << 20))


def test_an_entry_that_is_longer_than_listed_is_refused(tmp_path: Path) -> None:
    content = bytearray(contents.archive({"a.npy": npy(np.zeros(1000))}))
    length = (1000 * 8 + 128).to_bytes(4, "little")
    assert content.count(length) == 2  # before the entry, and in the listing
    lying = bytes(content).replace(length, (128 + 8).to_bytes(4, "little"))

    with pytest.raises(InvalidDataset, match=r"damaged|promises"):
        inspected(tmp_path, lying)


def test_what_is_not_an_array_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset, match=r"'readme\.txt' is not an array"):
        inspected(tmp_path, contents.archive({"a.npy": npy([1]), "readme.txt": b""}))


@pytest.mark.parametrize("content", [b"", b"PK", b"hello" * 50, PLAIN[:-1], PLAIN[:-40], PLAIN[40:], PLAIN[:100]])
def test_a_damaged_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InvalidDataset):
        inspected(tmp_path, content)


def test_a_strange_compression_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset, match="in another way than deflate"):
        inspected(tmp_path, contents.archive({"a.npy": npy([1])}, zipfile.ZIP_LZMA))


@given(st.integers(0, len(PLAIN) - 1), st.binary(min_size=1, max_size=4))
@settings(max_examples=400, deadline=None)
def test_no_damage_does_worse_than_being_refused(at: int, damage: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            description = inspected(Path(folder), PLAIN[:at] + damage + PLAIN[at + len(damage) :])
        except (InvalidDataset, TooLarge):
            return
        arrays = read_arrays(Path(folder) / "a.npz", [column.name for column in description.columns])
        assert all(len(array) == description.num_rows for array in arrays.values())


NUMBERS = st.one_of(hnp.boolean_dtypes(), hnp.integer_dtypes(), hnp.floating_dtypes())
SHAPES = hnp.array_shapes(max_dims=3, max_side=4)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)  # NumPy drops them at the end


@given(hnp.arrays(NUMBERS, SHAPES) | hnp.arrays("<U5", SHAPES, elements=TEXTS))
@settings(max_examples=100, deadline=None)
def test_every_plain_array_is_read_back(array: np.ndarray[Any, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        description = inspected(Path(folder), contents.npz(a=array))
        found = read_arrays(Path(folder) / "a.npz", ["a"])["a"]

    assert description.columns[0].shape == array.shape[1:]
    np.testing.assert_array_equal(found, array)
