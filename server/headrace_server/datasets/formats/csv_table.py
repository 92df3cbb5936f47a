"""Comma-separated values with a header line, UTF-8 (RFC 4180).

A column is `int64`, `double` or `bool` if every value of it in the whole file reads as one, else `string`, or `null` if
it holds nothing.  Unquoted NA, N/A, NaN, nan, null, NULL, #N/A and nothing at all are missing values; in columns of
numbers, so are blanks and a quoted nothing.  The file is read in blocks: memory does not grow with its size.
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from headrace_server.datasets.dataset import Column, DatasetFormat, Description
from headrace_server.datasets.formats.columns import check_names, nan_to_null
from headrace_server.datasets.formats.names import shown, words
from headrace_server.errors import InvalidDataset
from headrace_server.settings import DatasetSettings

BLOCK_BYTES = 8 << 20
MISSING = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "#N/A"]
_CANDIDATES = (pa.int64(), pa.float64(), pa.bool_())


def inspect(path: Path, _settings: DatasetSettings) -> Description:
    """Read the whole file once.  Raises InvalidDataset for whatever is not well formed."""
    _check_text(path)
    survey = _survey(path, None)
    if survey.num_rows == 0:
        raise _invalid("there is a header line but no row below it")
    columns = [
        Column(name=name, type=str(column.type), num_missing=column.num_missing)
        for name, column in survey.columns.items()
    ]
    return Description(num_rows=survey.num_rows, columns=tuple(columns))


def read_columns(path: Path, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    """Some columns, in the types that `inspect` told, with nulls where values are missing."""
    types = {name: column.type for name, column in _survey(path, names).columns.items()}
    chunks: dict[str, list[pa.Array]] = {name: [] for name in names}
    for batch in _batches(path, names):
        for name in names:
            chunks[name].append(_convert(batch.column(name), types[name]))
    return {name: pa.chunked_array(chunks[name], types[name]) for name in names}


@dataclass
class _ColumnSurvey:
    """What a column can be, as far as it has been seen."""

    candidates: list[pa.DataType] = field(default_factory=lambda: list(_CANDIDATES))
    num_null: int = 0
    num_nothing: int = 0
    num_nan: int = 0
    num_present: int = 0

    def observe(self, texts: pa.StringArray) -> None:
        self.num_null += texts.null_count
        num_nothing = pc.sum(pc.equal(pc.ascii_trim_whitespace(texts), "")).as_py() or 0
        self.num_nothing += num_nothing
        self.num_present += len(texts) - texts.null_count - num_nothing
        for candidate in list(self.candidates):
            try:
                values = _convert(texts, candidate)
            except pa.ArrowInvalid:
                self.candidates.remove(candidate)
            else:
                if pa.types.is_floating(candidate):
                    self.num_nan += values.null_count - texts.null_count - num_nothing

    @property
    def type(self) -> pa.DataType:
        if self.num_present == 0:
            return pa.string() if self.num_nothing else pa.null()
        return self.candidates[0] if self.candidates else pa.string()

    @property
    def num_missing(self) -> int:
        if self.type not in _CANDIDATES:
            return self.num_null
        return self.num_null + self.num_nothing + (self.num_nan if self.type == pa.float64() else 0)


@dataclass
class _Survey:
    columns: dict[str, _ColumnSurvey]
    num_rows: int = 0


def _survey(path: Path, names: Sequence[str] | None) -> _Survey:
    header = _header(path)
    check_names(header, DatasetFormat.CSV)
    if unknown := [name for name in names or () if name not in header]:
        raise _invalid(f"there is no column {shown(unknown[0])}")
    survey = _Survey({name: _ColumnSurvey() for name in (header if names is None else names)})
    for batch in _batches(path, names):
        survey.num_rows += batch.num_rows
        for name, column in survey.columns.items():
            column.observe(batch.column(name))
    return survey


def _convert(texts: pa.StringArray, to: pa.DataType) -> pa.Array:
    if pa.types.is_string(to):
        return texts
    if pa.types.is_null(to):
        return pa.nulls(len(texts))
    trimmed = pc.ascii_trim_whitespace(texts)
    values = pc.cast(pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed), to)
    return nan_to_null(values)


def _header(path: Path) -> list[str]:
    with _open(path, None, []) as reader:
        return list(reader.schema.names)


def _batches(path: Path, names: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    ragged: list[Any] = []
    with _open(path, names, ragged) as reader:
        while True:
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                return
            except pa.ArrowInvalid as error:
                raise _explain(error, ragged) from error
            yield batch


def _open(path: Path, names: Sequence[str] | None, ragged: list[Any]) -> pa.csv.CSVStreamingReader:
    def remember(row: Any) -> str:
        ragged.append(row)
        return "error"

    try:
        return pyarrow.csv.open_csv(
            path,
            # One thread: only then do rows have numbers, and a job must not take every core of the machine for this.
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=remember),
            convert_options=pyarrow.csv.ConvertOptions(
                default_column_type=pa.string(),
                include_columns=names,
                null_values=MISSING,
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        raise _explain(error, ragged) from error


def _explain(error: pa.ArrowInvalid, ragged: list[Any]) -> InvalidDataset:
    if ragged:
        row = ragged[0]
        problem = f"row {row.number}, counted from the header line, has {row.actual_columns} values"
        return _invalid(f"{problem}, not {row.expected_columns}", row=row.number)
    if "straddling" in str(error) or "cannot infer number of columns" in str(error):
        return _invalid(f"a row is longer than {BLOCK_BYTES >> 20} MiB; perhaps a quoted value is not closed")
    return _invalid(words(error))


def _check_text(path: Path) -> None:
    """Find what the parser would let pass, or blame on the wrong place."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, num_quotes, is_blank = 1, 0, True
    with path.open("rb") as file:
        while True:
            block = file.read(1 << 20)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise _invalid(f"line {line} is not UTF-8", line=line) from error
            if (nul := text.find("\0")) >= 0:
                line += text.count("\n", 0, nul)
                raise _invalid(f"line {line} holds a zero byte: this is not text", line=line)
            line += text.count("\n")
            num_quotes += text.count('"')
            is_blank = is_blank and not text.strip("\r\n\ufeff")
            if not block:
                break
    if is_blank:
        raise _invalid("the file is empty")
    if num_quotes % 2:
        raise _invalid('the number of quotation marks (") is odd: a quoted value is not closed')


def _invalid(problem: str, **metadata: object) -> InvalidDataset:
    return InvalidDataset(problem, DatasetFormat.CSV, **metadata)
