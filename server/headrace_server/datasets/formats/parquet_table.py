"""Apache Parquet with flat columns.  Reads the whole file once, in batches, so that a damaged page is found at once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from headrace_server.datasets.dataset import Column, DatasetFormat, Description
from headrace_server.datasets.formats.columns import check_names, nan_to_null
from headrace_server.datasets.formats.names import shown, words
from headrace_server.errors import InvalidDataset, TooLarge
from headrace_server.settings import DatasetSettings

BATCH_ROWS = 16_384


def inspect(path: Path, settings: DatasetSettings) -> Description:
    """Read the whole file once.  Raises InvalidDataset for damage and for nested columns, or TooLarge."""
    with _open(path) as file:
        schema = file.schema_arrow
        check_names(schema.names, DatasetFormat.PARQUET)
        for column in schema:
            _check_type(column)
        num_rows = file.metadata.num_rows
        if num_rows == 0:
            raise _invalid("there are no rows")
        # What is promised is believed first, so that a small file cannot ask for endless work.
        promised_bytes = num_rows * sum(_least_bytes(column.type) for column in schema)
        _check_size(promised_bytes, settings)
        num_missing = dict.fromkeys(schema.names, 0)
        unpacked_bytes = num_seen = 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            num_seen += batch.num_rows
            for name, values in zip(schema.names, batch.columns, strict=True):
                unpacked_bytes += _unpacked_bytes(values)
                num_missing[name] += _num_missing(values)
            _check_size(unpacked_bytes, settings)
        if num_seen != num_rows:
            raise _invalid(f"it promises {num_rows} rows but holds {num_seen}")
        columns = [
            Column(name=column.name, type=str(_plain(column.type)), num_missing=num_missing[column.name])
            for column in schema
        ]
        return Description(num_rows=num_rows, columns=tuple(columns))


def read_columns(path: Path, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    """Some columns, dictionaries decoded, with nulls where values are missing."""
    with _open(path) as file:
        if unknown := [name for name in names if name not in file.schema_arrow.names]:
            raise _invalid(f"there is no column {shown(unknown[0])}")
        types = {name: _plain(file.schema_arrow.field(name).type) for name in names}
        chunks: dict[str, list[pa.Array]] = {name: [] for name in names}
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(names)):
            for name in names:
                chunks[name].append(nan_to_null(_decoded(batch.column(name))))
        return {name: pa.chunked_array(chunks[name], types[name]) for name in names}


@contextmanager
def _open(path: Path) -> Iterator[pa.parquet.ParquetFile]:
    try:
        # An open file, not a path, because error messages repeat the path and callers need not know it.
        with pa.OSFile(str(path)) as source:
            texts = [column.name for column in pa.parquet.read_schema(source) if _is_text(column.type)]
            # Texts stay dictionaries while they are looked at: a short file can repeat one long text very often.
            yield pa.parquet.ParquetFile(source, read_dictionary=texts)
    except (pa.ArrowException, UnicodeDecodeError, MemoryError) as error:
        raise _invalid(f"it cannot be read: {words(error)}") from error
    except OSError as error:
        if error.errno is not None:  # the disk's fault
            raise
        raise _invalid(f"it cannot be read: {words(error)}") from error


def _check_type(column: pa.Field) -> None:
    if pa.types.is_nested(_plain(column.type)):
        raise _invalid(
            f"column {shown(column.name)} is {column.type}: nested columns are not supported; flatten it first",
            column=column.name,
        )


def _check_size(num_bytes: int, settings: DatasetSettings) -> None:
    if num_bytes > settings.max_unpacked_bytes:
        raise TooLarge("unpacked data set", settings.max_unpacked_bytes, "datasets.max_unpacked_bytes")


def _least_bytes(of: pa.DataType) -> int:
    plain = _plain(of)
    try:
        num_bits: int = plain.bit_width
    except ValueError:  # of variable length: at least its offset
        return 4
    return max(1, num_bits // 8)


def _unpacked_bytes(values: pa.Array) -> int:
    if not pa.types.is_dictionary(values.type):
        return int(values.nbytes)
    lengths = pc.binary_length(values.dictionary)
    text_bytes: int = pc.sum(lengths.take(values.indices)).as_py() or 0
    return 4 * len(values) + text_bytes


def _num_missing(values: pa.Array) -> int:
    if pa.types.is_dictionary(values.type) and _is_text(values.type.value_type):
        return int(values.null_count)
    return int(pc.sum(pc.is_null(_decoded(values), nan_is_null=True)).as_py())


def _decoded(values: pa.Array) -> pa.Array:
    plain = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    return plain.cast(_plain(values.type))


def _plain(of: pa.DataType) -> pa.DataType:
    """The type without its way of being stored: no dictionaries, and one type for texts."""
    inner = of.value_type if pa.types.is_dictionary(of) else of
    return pa.string() if pa.types.is_large_string(inner) or pa.types.is_string_view(inner) else inner


def _is_text(of: pa.DataType) -> bool:
    plain = _plain(of)
    return bool(pa.types.is_string(plain) or pa.types.is_binary(plain))


def _invalid(problem: str, **metadata: object) -> InvalidDataset:
    return InvalidDataset(problem, DatasetFormat.PARQUET, **metadata)
