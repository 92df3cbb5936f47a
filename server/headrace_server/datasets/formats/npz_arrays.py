"""NumPy .npz: named arrays that share their first axis.

The header of an array is compared with the bytes that follow, which are read in blocks.  Nothing is ever unpickled.
"""

import tokenize
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace_server.datasets.dataset import Column, DatasetFormat, Description
from headrace_server.datasets.formats.archive import check_archive, open_archive
from headrace_server.datasets.formats.columns import check_names, nan_to_null
from headrace_server.datasets.formats.names import shown
from headrace_server.errors import InvalidDataset
from headrace_server.settings import DatasetSettings
from headrace_server.tensors import Array

BLOCK_ELEMENTS = 1 << 17
_ENDING = ".npy"
_KINDS = "biufU"
# Headers are Python literals, and this is what NumPy's reading of them may end in.
_UNREADABLE = (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)


def inspect(path: Path, settings: DatasetSettings) -> Description:
    """Read the whole file once.  Raises InvalidDataset for damage and for what is not plain arrays, or TooLarge."""
    check_archive(path, DatasetFormat.NPZ, settings)
    with open_archive(path, DatasetFormat.NPZ) as archive:
        names = _names(archive)
        check_names(names, DatasetFormat.NPZ)
        lengths: dict[str, int] = {}
        columns = []
        for name in names:
            with archive.open(f"{name}{_ENDING}") as file:
                shape, _, dtype = _header(file, name)
                num_missing = _check_elements(file, name, shape, dtype)
            lengths[name] = shape[0]
            columns.append(Column(name=name, type=_type(dtype), shape=shape[1:], num_missing=num_missing))
    if len(set(lengths.values())) > 1:
        first, other = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
        raise _invalid(
            f"all arrays must have the same number of rows, but {shown(first)} has {lengths[first]} and {shown(other)} "
            f"{lengths[other]}"
        )
    if lengths[names[0]] == 0:
        raise _invalid("the arrays have no rows")
    return Description(num_rows=lengths[names[0]], columns=tuple(columns))


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """Some arrays, whole, in this machine's byte order and rows first."""
    arrays = {}
    with open_archive(path, DatasetFormat.NPZ) as archive:
        for name in names:
            with _entry(archive, name) as file:
                _header(file, name)
            with archive.open(f"{name}{_ENDING}") as file:
                array: Array = np.lib.format.read_array(file, allow_pickle=False)
            arrays[name] = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    return arrays


def describe_array(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """The shape of an array and the type of its elements, without reading them."""
    with open_archive(path, DatasetFormat.NPZ) as archive, _entry(archive, name) as file:
        shape, _, dtype = _header(file, name)
    return shape, dtype.newbyteorder("=")


def read_rows(path: Path, name: str, rows_at_once: int) -> Iterator[Array]:
    """The rows of an array from first to last, some at a time, in this machine's byte order.

    One that lies column by column is read whole, since its rows lie everywhere.
    """
    with open_archive(path, DatasetFormat.NPZ) as archive, _entry(archive, name) as file:
        shape, is_fortran_order, dtype = _header(file, name)
        if not is_fortran_order:
            row_bytes = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
            for begin in range(0, shape[0], rows_at_once):
                num_rows = min(rows_at_once, shape[0] - begin)
                content = file.read(row_bytes * num_rows)
                if len(content) != row_bytes * num_rows:
                    raise _invalid(f"the array {shown(name)} ends before its last row", array=name)
                rows = np.frombuffer(content, dtype).reshape(num_rows, *shape[1:])
                yield rows.astype(dtype.newbyteorder("="))
            return
    whole = read_arrays(path, [name])[name]
    for begin in range(0, len(whole), rows_at_once):
        yield whole[begin : begin + rows_at_once]


def _entry(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    if f"{name}{_ENDING}" not in archive.NameToInfo:
        raise _invalid(f"there is no array {shown(name)}")
    return archive.open(f"{name}{_ENDING}")


def read_columns(path: Path, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    """Some arrays of one axis, as columns of a table, with nulls where floating point values are NaN."""
    columns = {}
    for name in names:
        array = read_arrays(path, [name])[name]
        if array.ndim != 1:
            raise _invalid(f"the array {shown(name)} has {array.ndim} axes, and a column of a table has one")
        columns[name] = pa.chunked_array([nan_to_null(pa.array(array))])
    return columns


def _names(archive: zipfile.ZipFile) -> list[str]:
    names = []
    for entry in archive.infolist():
        if not entry.filename.endswith(_ENDING):
            raise _invalid(f"the entry {shown(entry.filename)} is not an array: its name does not end in {_ENDING}")
        names.append(entry.filename.removesuffix(_ENDING))
    return names


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, is_fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, is_fortran_order, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise _invalid(
                f"the array {shown(name)} has named fields, or another version of the .npy format than 1 and 2"
            )
    except _UNREADABLE as error:
        raise _invalid(f"the array {shown(name)} has no readable header") from error
    if dtype.kind not in _KINDS:
        kind = "objects, which are never unpickled" if dtype.hasobject else f"elements of type {dtype}"
        raise _invalid(
            f"the array {shown(name)} holds {kind}; numbers, truth values and texts are supported", array=name
        )
    if not shape:
        raise _invalid(f"the array {shown(name)} has no axis", array=name)
    if dtype.itemsize == 0 or any(length < 0 for length in shape):
        raise _invalid(f"the array {shown(name)} has no elements of any size", array=name)
    return shape, is_fortran_order, dtype


def _check_elements(file: IO[bytes], name: str, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> int:
    """Compare the bytes with the header and return how many elements are NaN."""
    num_elements = num_missing = 0
    for block in _blocks(file, BLOCK_ELEMENTS * dtype.itemsize):
        if len(block) % dtype.itemsize:
            raise _invalid(f"the array {shown(name)} ends in the middle of an element", array=name)
        elements = np.frombuffer(block, dtype)
        num_elements += len(elements)
        if dtype.kind == "f":
            num_missing += int(np.isnan(elements).sum())
        elif dtype.kind == "U" and not _is_text(np.frombuffer(block, f"{dtype.byteorder}u4")):
            raise _invalid(f"the array {shown(name)} holds what is not text", array=name)
    expected = 1
    for length in shape:
        expected *= length
    if num_elements != expected:
        raise _invalid(f"the array {shown(name)} promises {expected} elements but holds {num_elements}", array=name)
    return num_missing


def _is_text(code_points: NDArray[np.uint32]) -> bool:
    is_surrogate = (code_points >= 0xD800) & (code_points <= 0xDFFF)
    return not (is_surrogate | (code_points > 0x10FFFF)).any()


def _blocks(file: IO[bytes], block_bytes: int) -> Iterator[bytes]:
    while block := file.read(block_bytes):
        yield block


def _type(dtype: np.dtype[np.generic]) -> str:
    return "string" if dtype.kind == "U" else dtype.name


def _invalid(problem: str, **metadata: object) -> InvalidDataset:
    return InvalidDataset(problem, DatasetFormat.NPZ, **metadata)
