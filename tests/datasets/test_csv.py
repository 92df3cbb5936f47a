import csv
import io
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings, strategies as st

from headrace_server.datasets.dataset import DatasetFormat, Description
from headrace_server.datasets.formats import csv_table
from headrace_server.datasets.inspection import inspect
from headrace_server.datasets.reading import read_columns
from headrace_server.errors import InvalidDataset
from headrace_server.settings import DatasetSettings
from tests.doubles import contents

SETTINGS = DatasetSettings()


def inspected(folder: Path, content: bytes) -> Description:
    (folder / "t.csv").write_bytes(content)
    return inspect(folder / "t.csv", DatasetFormat.CSV, SETTINGS)


def values(folder: Path, *names: str) -> list[list[object]]:
    columns = read_columns(folder / "t.csv", DatasetFormat.CSV, names)
    return [columns[name].to_pylist() for name in names]


def types(description: Description) -> dict[str, tuple[str, int]]:
    return {column.name: (column.type, column.num_missing) for column in description.columns}


def test_columns_are_told_by_all_of_their_values(tmp_path: Path) -> None:
    description = inspected(
        tmp_path,
        contents.csv(
            "whole,real,truth,text,mixed,nothing", "1,1.5,true,a,1,", " 2 ,2,FALSE,b,x,NA", "-3,inf,1,,2,null"
        ),
    )

    assert description.num_rows == 3
    assert types(description) == {
        "whole": ("int64", 0),
        "real": ("double", 0),
        "truth": ("bool", 0),
        "text": ("string", 1),
        "mixed": ("string", 0),
        "nothing": ("null", 3),
    }
    assert values(tmp_path, "whole", "truth", "text", "nothing") == [
        [1, 2, -3],
        [True, False, True],
        ["a", "b", None],
        [None, None, None],
    ]


def test_a_value_of_another_type_far_below_still_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_table, "BLOCK_BYTES", 64)
    rows = [f"{number},{number}" for number in range(500)]

    description = inspected(tmp_path, contents.csv("a,b", *rows, "0.5,x"))

    assert types(description) == {"a": ("double", 0), "b": ("string", 0)}
    columns = read_columns(tmp_path / "t.csv", DatasetFormat.CSV, ["b", "a"])
    assert list(columns) == ["b", "a"]
    assert columns["a"].to_pylist() == [*map(float, range(500)), 0.5]
    assert columns["b"].to_pylist() == [*map(str, range(500)), "x"]
    assert columns["a"].num_chunks > 10


def test_a_quoted_nothing_is_missing_among_numbers_and_text_among_texts(tmp_path: Path) -> None:
    description = inspected(tmp_path, contents.csv("n,t", '"1",""', '"","a"', ',"NA"', "3,NA"))

    assert types(description) == {"n": ("int64", 2), "t": ("string", 1)}
    assert values(tmp_path, "n", "t") == [[1, None, None, 3], ["", "a", "NA", None]]


def test_nan_in_any_spelling_is_missing(tmp_path: Path) -> None:
    description = inspected(tmp_path, contents.csv("x", "1.5", "NaN", "nan", "NAN", "-nan"))

    assert types(description) == {"x": ("double", 4)}
    assert values(tmp_path, "x") == [[1.5, None, None, None, None]]


def test_numbers_too_large_for_whole_ones_become_real_ones(tmp_path: Path) -> None:
    assert types(inspected(tmp_path, contents.csv("x", "1", "99999999999999999999"))) == {"x": ("double", 0)}


def test_a_mark_of_byte_order_and_lines_of_windows_are_fine(tmp_path: Path) -> None:
    description = inspected(tmp_path, b"\xef\xbb\xbfa,b\r\n1,2\r\n\r\n3,4")

    assert description.num_rows == 2
    assert types(description) == {"a": ("int64", 0), "b": ("int64", 0)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"\n\r\n", "the file is empty"),
        (b"\xef\xbb\xbf", "the file is empty"),
        (b"a,b\n", "no row below it"),
        (b"a,b\n1,2\n3,4,5\n", "row 3, counted from the header line, has 3 values, not 2"),
        (b"a,b\n1,2\n3\n", "row 3, counted from the header line, has 1 values, not 2"),
        (b"a,b,a\n1,2,3\n", "2 columns have the same name, 'a'"),
        (b"a,,c\n1,2,3\n", "column 2 has no name"),
        (b"a, \n1,2\n", "column 2 has no name"),
        (b"a,b\x07\n1,2\n", "column 2 has control characters"),
        (b"a,b\n1,2\n3,\xff\n", "line 3 is not UTF-8"),
        (b"a,b\xe4\n1,2\n", "line 1 is not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "line 1 is not UTF-8"),
        (b"a,b\n1,2\n3,\xc3", "line 3 is not UTF-8"),
        (b"a,b\n1,\x002\n", "line 2 holds a zero byte"),
        (b'a,b\n1,"x\n2,y\n', "a quoted value is not closed"),
        (b"a\n" + b"x" * (20 << 20), "a row is longer than 8 MiB"),
        (b"a" * (9 << 20) + b",b\n1,2\n", "longer than 8 MiB|control characters, or more than 1024"),
    ],
)
def test_what_is_not_well_formed_is_refused_with_the_reason(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(InvalidDataset, match=said) as caught:
        inspected(tmp_path, content)

    assert caught.value.metadata["format"] == "CSV"
    assert str(tmp_path) not in str(caught.value)


def test_a_bad_row_far_below_is_numbered_from_the_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_table, "BLOCK_BYTES", 64)

    with pytest.raises(InvalidDataset, match="row 302,") as caught:
        inspected(tmp_path, contents.csv("a,b", *["1,2"] * 300, "1"))

    assert caught.value.metadata["row"] == "302"


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    inspected(tmp_path, contents.csv("a", "1"))

    with pytest.raises(InvalidDataset, match="there is no column 'b'"):
        values(tmp_path, "b")


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8)


NAMES = st.lists(st.text('abcXYZ é_,"', min_size=1, max_size=5).filter(str.strip), min_size=1, max_size=4, unique=True)


@given(
    NAMES.flatmap(
        lambda names: st.tuples(st.just(names), st.lists(st.tuples(*[TEXTS for _ in names]), min_size=1, max_size=8))
    )
)
@settings(max_examples=80, deadline=None)
def test_what_python_writes_is_read_back(table: tuple[list[str], list[tuple[str, ...]]]) -> None:
    names, rows = table
    target = io.StringIO()
    writer = csv.writer(target, quoting=csv.QUOTE_ALL)
    writer.writerows([names, *rows])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        description = inspected(path, target.getvalue().encode())

        assert [column.name for column in description.columns] == names
        assert description.num_rows == len(rows)
        columns = read_columns(path / "t.csv", DatasetFormat.CSV, names)
        for position, column in enumerate(description.columns):
            assert str(columns[column.name].type) == column.type
            assert columns[column.name].null_count == column.num_missing
            if column.type == "string":
                assert columns[column.name].to_pylist() == [row[position] for row in rows]


@example(b" !,!\n ,")  # a blank is missing in a column of numbers, and this column could be one
@given(st.binary(max_size=60) | st.text('a,"\n1.e', max_size=60).map(str.encode))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_table_or_an_invalid_data_set(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        try:
            description = inspected(path, content)
        except InvalidDataset:
            return
        names = [column.name for column in description.columns]
        table = pa.table(read_columns(path / "t.csv", DatasetFormat.CSV, names))
        assert table.num_rows == description.num_rows > 0
        assert [column.null_count for column in table.columns] == [column.num_missing for column in description.columns]
