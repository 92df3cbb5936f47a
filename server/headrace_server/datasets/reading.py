"""How trainers read contents: columns, arrays, images.  Knows no torch.

The content has been checked when it was stored, and its digest when it was fetched; what still turns out to be wrong
raises InvalidDataset.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.datasets.formats import csv_table, image_archive, npz_arrays, parquet_table
from headrace_server.errors import InvalidDataset
from headrace_server.tensors import Array


def read_columns(path: Path, format: DatasetFormat, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:  # noqa: A002
    """Some columns of a table, in the types that the data set's description tells.

    Missing values are nulls; no NaN is left.  Arrays of an NPZ count as columns if they have one axis.
    """
    match format:
        case DatasetFormat.CSV:
            return csv_table.read_columns(path, names)
        case DatasetFormat.PARQUET:
            return parquet_table.read_columns(path, names)
        case DatasetFormat.NPZ:
            return npz_arrays.read_columns(path, names)
        case DatasetFormat.IMAGE_ZIP:
            raise InvalidDataset("an archive of images has no columns", format)


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """Some arrays of an NPZ, whole, in this machine's byte order and rows first."""
    return npz_arrays.read_arrays(path, names)


def describe_array(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """The shape of an array of an NPZ and the type of its elements, without reading them."""
    return npz_arrays.describe_array(path, name)


def read_rows(path: Path, name: str, rows_at_once: int) -> Iterator[Array]:
    """The rows of an array of an NPZ from first to last, so many at a time, for arrays that no memory holds."""
    return npz_arrays.read_rows(path, name, rows_at_once)


def list_classes(path: Path) -> list[str]:
    """The name of the class of every image of an IMAGE_ZIP, in the order of `read_images`."""
    return image_archive.list_classes(path)


def read_images(path: Path) -> Iterator[tuple[str, Image.Image]]:
    """Every image of an IMAGE_ZIP with the name of its class, decoded one at a time, sorted by class and file name.

    An image is valid until the next one is asked for.  Its mode ("L", "RGB", "P"…) is the file's own.
    """
    return image_archive.read_images(path)
