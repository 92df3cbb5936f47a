"""Tells what a content is and whether it is sound, by its format.  Blocks: call it in a thread."""

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from headrace_server.datasets.dataset import DatasetFormat, Description
from headrace_server.datasets.formats import csv_table, image_archive, npz_arrays, parquet_table
from headrace_server.errors import InvalidSpec, Violation
from headrace_server.settings import DatasetSettings

ENDINGS: Mapping[str, DatasetFormat] = {
    ".csv": DatasetFormat.CSV,
    ".parquet": DatasetFormat.PARQUET,
    ".npz": DatasetFormat.NPZ,
    ".zip": DatasetFormat.IMAGE_ZIP,
}

_INSPECT: Mapping[DatasetFormat, Callable[[Path, DatasetSettings], Description]] = {
    DatasetFormat.CSV: csv_table.inspect,
    DatasetFormat.PARQUET: parquet_table.inspect,
    DatasetFormat.NPZ: npz_arrays.inspect,
    DatasetFormat.IMAGE_ZIP: image_archive.inspect,
}


def inspect(path: Path, format: DatasetFormat, settings: DatasetSettings) -> Description:  # noqa: A002 - contract's word
    """Read a content and describe it.  Raises InvalidDataset, or TooLarge for what unpacks to too much."""
    return _INSPECT[format](path, settings)


def format_of(file_name: str, field: str = "file_name") -> DatasetFormat:
    """The format that the ending of a file name tells.  Raises InvalidSpec, which blames `field`."""
    ending = PurePosixPath(file_name).suffix.lower()
    if ending not in ENDINGS:
        problem = f"{file_name!r} has none of the endings {', '.join(ENDINGS)}" if file_name else "is missing"
        raise InvalidSpec([Violation(field, f"{problem}; send the format as well, or a file name that tells it")])
    return ENDINGS[ending]
