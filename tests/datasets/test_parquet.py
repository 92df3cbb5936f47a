import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from headrace_server.datasets.dataset import DatasetFormat, Description
from headrace_server.datasets.inspection import inspect
from headrace_server.datasets.reading import read_columns
from headrace_server.errors import InvalidDataset, TooLarge
from headrace_server.settings import DatasetSettings
from tests.doubles import contents

COLUMNS = {
    "whole": pa.array([1, None, 3], pa.int32()),
    "real": pa.array([1.5, float("nan"), None], pa.float64()),
    "text": pa.array(["a", None, "b"]),
    "large": pa.array(["a", None, "b"], pa.large_string()),
    "view": pa.array(["a", None, "b"], pa.string_view()),
    "category": pa.array(["a", None, "a"]).dictionary_encode(),
    "truth": pa.array([True, False, None]),
    "moment": pa.array([1, 2, 3], pa.timestamp("ms")),
}
TABLE = contents.parquet(COLUMNS)


def inspected(folder: Path, content: bytes, limits: DatasetSettings = DatasetSettings()) -> Description:  # noqa: B008
    (folder / "t.parquet").write_bytes(content)
    return inspect(folder / "t.parquet", DatasetFormat.PARQUET, limits)


def test_columns_have_the_types_of_the_file_and_one_type_of_text(tmp_path: Path) -> None:
    description = inspected(tmp_path, TABLE)

    assert description.num_rows == 3
    assert {column.name: (column.type, column.num_missing) for column in description.columns} == {
        "whole": ("int32", 1),
        "real": ("double", 2),
        "text": ("string", 1),
        "large": ("string", 1),
        "view": ("string", 1),
        "category": ("string", 1),
        "truth": ("bool", 1),
        "moment": ("timestamp[ms]", 0),
    }


def test_columns_are_read_as_they_were_described(tmp_path: Path) -> None:
    description = inspected(tmp_path, TABLE)

    columns = read_columns(tmp_path / "t.parquet", DatasetFormat.PARQUET, list(COLUMNS))

    for column in description.columns:
        assert str(columns[column.name].type) == column.type
        assert columns[column.name].null_count == column.num_missing
    assert columns["real"].to_pylist() == [1.5, None, None]
    for name in ("text", "large", "view"):
        assert columns[name].to_pylist() == ["a", None, "b"]
    assert columns["category"].to_pylist() == ["a", None, "a"]


def test_many_row_groups_are_one_table(tmp_path: Path) -> None:
    description = inspected(tmp_path, contents.parquet({"a": list(range(1000)), "b": ["x"] * 1000}, row_group_size=7))

    columns = read_columns(tmp_path / "t.parquet", DatasetFormat.PARQUET, ["a"])

    assert description.num_rows == 1000
    assert columns["a"].to_pylist() == list(range(1000))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"a": [[1], [2]]}, "'a' is list<element: int64>: nested columns are not supported"),
        ({"a": [{"x": 1}]}, "nested columns are not supported"),
        ({"a": pa.array([], pa.int64())}, "there are no rows"),
        ({}, "there are no columns"),
        ({" ": [1]}, "column 1 has no name"),
        ({"\n": [1]}, "column 1 has no name"),
        ({"a\n": [1]}, "column 1 has control characters"),
    ],
)
def test_what_no_trainer_could_use_is_refused_with_the_reason(
    tmp_path: Path, columns: dict[str, object], said: str
) -> None:
    with pytest.raises(InvalidDataset, match=said):
        inspected(tmp_path, contents.parquet(columns))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"hello" * 100, TABLE[:-1], TABLE[:-20], TABLE[100:], TABLE[:200]])
def test_a_damaged_file_is_refused_without_naming_a_path_of_the_server(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InvalidDataset, match="it cannot be read") as caught:
        inspected(tmp_path, content)

    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.integers(0, len(TABLE) - 1), st.binary(min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_no_damage_does_worse_than_being_refused(at: int, damage: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            inspected(Path(folder), TABLE[:at] + damage + TABLE[at + len(damage) :])
        except (InvalidDataset, TooLarge):
            pass


def test_a_small_file_of_endless_rows_is_refused_before_they_are_read(tmp_path: Path) -> None:
    bomb = contents.parquet({"a": pa.nulls(50_000_000, pa.int64())})
    assert len(bomb) < 100_000

    with pytest.raises(TooLarge, match=r"datasets\.max_unpacked_bytes"):
        inspected(tmp_path, bomb, DatasetSettings(max_unpacked_bytes=1 << 20))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
def test_one_long_text_repeated_very_often_is_refused_before_it_fills_the_memory(
    tmp_path: Path, kind: pa.DataType
) -> None:
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 50_000, pa.int32()), pa.array(["x" * 100_000]).cast(kind))
    bomb = contents.parquet({"a": once})
    assert len(bomb) < 50_000
    before = pa.default_memory_pool().max_memory()

    with pytest.raises(TooLarge):
        inspected(tmp_path, bomb, DatasetSettings(max_unpacked_bytes=1 << 29))

    assert pa.default_memory_pool().max_memory() - before < 1 << 27


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    inspected(tmp_path, TABLE)

    with pytest.raises(InvalidDataset, match="there is no column 'b'"):
        read_columns(tmp_path / "t.parquet", DatasetFormat.PARQUET, ["b"])
