"""Turns the columns of a table into arrays to learn from.  Knows no torch.

Rows are counted from 1 in messages, the header not among them.
"""

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.errors import InvalidDataset
from headrace_server.trainers.tabular.parameters import ColumnKind, TargetKind, column_kind

OTHER = ""
"""What category number 0 is called, which stands for every text that is not listed (`TensorSpec.class_names`).

In training: missing and empty texts, and those that training rows hold less than twice.
"""
_MANY_CATEGORIES = 1000
_FEW_INTEGERS = 20
_FEW_STRAYS = 0.05

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be predicted, for those rows that have it."""

    values: NDArray[np.generic]
    """Class numbers (int64), or numbers (float64)."""
    class_names: tuple[str, ...]
    """Empty for a regression."""
    is_present: NDArray[np.bool_]
    """Which rows of the table have a target."""


def column_names(path: Path, format: DatasetFormat) -> tuple[str, ...]:  # noqa: A002 - the contract's word
    """The columns of a table, in order."""
    if format is DatasetFormat.PARQUET:
        return tuple(pq.read_schema(path).names)
    with path.open(encoding="utf-8-sig", newline="") as file:
        return tuple(next(csv.reader(file)))


def kind_of(name: str, column: pa.ChunkedArray) -> ColumnKind:
    """How a column is learnt from.  Raises InvalidDataset when it cannot be."""
    kind = column_kind(str(column.type))
    if kind is None:
        raise InvalidDataset(f"column {name!r} has the type {column.type}, which cannot be learnt from", column=name)
    return kind


def read_target(name: str, column: pa.ChunkedArray, task: TargetKind) -> Target:
    """The target column.  Raises InvalidDataset when it does not fit the task."""
    kind = kind_of(name, column)
    is_present = np.asarray(pc.is_valid(column), dtype=bool)
    if not is_present.any():
        raise InvalidDataset(f"the target {name!r} has no values", column=name)
    if task is TargetKind.AUTO:
        is_class = _looks_like_classes(column, kind)
        task = TargetKind.CLASSIFICATION if is_class else TargetKind.REGRESSION
    if task is TargetKind.CLASSIFICATION:
        return _classes(name, column, kind, is_present)
    if kind is ColumnKind.CATEGORY:
        raise _not_a_number(name, column)
    return Target(read_numbers(name, column)[is_present], (), is_present)


def read_numbers(name: str, column: pa.ChunkedArray) -> Floats:
    """A column of numbers [rows]; NaN where one is missing.  Raises InvalidDataset for one that float32 cannot hold."""
    plain = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    numbers: Floats = plain.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    too_large = np.flatnonzero(np.abs(numbers) > np.finfo(np.float32).max)
    if len(too_large):
        row = int(too_large[0]) + 1
        raise InvalidDataset(
            f"column {name!r} holds {numbers[row - 1]} in row {row}: not a finite number of single precision",
            column=name,
            row=row,
        )
    return numbers


def read_texts(column: pa.ChunkedArray) -> NDArray[np.object_]:
    """A column of texts [rows]; None where one is missing."""
    texts: NDArray[np.object_] = np.asarray(column.cast(pa.string()).to_pylist(), dtype=object)
    return texts


def refuse_broken_numbers(name: str, texts: NDArray[np.object_]) -> None:
    """Raise InvalidDataset for what is clearly a column of numbers, but for a few texts that make it text.

    To learn from it as from categories would be wrong without anybody noticing.
    """
    present = [(row, text) for row, text in enumerate(texts, start=1) if text is not None]
    strays = [(row, text) for row, text in present if not _is_number(text)]
    is_broken = 0 < len(strays) <= _FEW_STRAYS * len(present) and len({text for _, text in present}) > _FEW_INTEGERS
    if is_broken:
        row, text = strays[0]
        more = f" (and {len(strays) - 1} more)" if len(strays) > 1 else ""
        raise InvalidDataset(
            f"column {name!r} holds numbers, but {text[:40]!r} in row {row}{more}; correct it, or leave it empty",
            column=name,
            row=row,
        )


def list_categories(name: str, texts: NDArray[np.object_]) -> tuple[str, ...]:
    """What each category number stands for, by the texts of training rows: OTHER, then all that occur twice or more.

    Raises InvalidDataset for texts that are hardly ever the same.
    """
    counts = Counter(text for text in texts if text is not None)
    if len(counts) > max(_MANY_CATEGORIES, len(texts) / 2):
        raise InvalidDataset(
            f"column {name!r} is text with {len(counts):,} different values in {len(texts):,} training rows: too many "
            f"for categories; list the features to learn from without it",
            column=name,
        )
    return (OTHER, *sorted(text for text, count in counts.items() if count > 1 and text != OTHER))


def encode_categories(texts: NDArray[np.object_], categories: tuple[str, ...]) -> Codes:
    """The category number of each text; 0 for those that are not known."""
    code_of = {text: code for code, text in enumerate(categories) if code}
    return np.fromiter((code_of.get(text, 0) for text in texts), dtype=np.int64, count=len(texts))


def _looks_like_classes(column: pa.ChunkedArray, kind: ColumnKind) -> bool:
    value_type = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if kind is ColumnKind.CATEGORY or pa.types.is_boolean(value_type):
        return True
    if not pa.types.is_integer(value_type):
        return False
    num_distinct = len(column.unique().drop_null())
    return num_distinct <= _FEW_INTEGERS and 2 * num_distinct <= len(column) - column.null_count


def _classes(name: str, column: pa.ChunkedArray, kind: ColumnKind, is_present: NDArray[np.bool_]) -> Target:
    if kind is ColumnKind.CATEGORY:
        labels = read_texts(column)[is_present]
        distinct = sorted(set(labels))
        numbers = encode_categories(labels, ("", *distinct)) - 1
        class_names = tuple(distinct)
    else:
        values = read_numbers(name, column)
        fractions = np.flatnonzero(is_present & (values != np.round(values)))
        if len(fractions):
            row = int(fractions[0]) + 1
            raise InvalidDataset(
                f"the target {name!r} holds {values[row - 1]} in row {row}, which names no class; ask for regression",
                column=name,
                row=row,
            )
        found, numbers = np.unique(values[is_present].astype(np.int64), return_inverse=True)
        is_boolean = pa.types.is_boolean(column.type)
        class_names = tuple(str(bool(value)).lower() if is_boolean else str(value) for value in found.tolist())
    if len(class_names) < 2:
        raise InvalidDataset(
            f"the target {name!r} is {class_names[0]!r} in every row: nothing to tell apart", column=name
        )
    if len(class_names) > max(_MANY_CATEGORIES, len(numbers) / 2):
        raise InvalidDataset(
            f"the target {name!r} has {len(class_names):,} different values in {len(numbers):,} rows: too many for "
            "classes",
            column=name,
        )
    return Target(numbers.astype(np.int64), class_names, is_present)


def _not_a_number(name: str, column: pa.ChunkedArray) -> InvalidDataset:
    texts = read_texts(column)
    row, text = next(
        (row, text) for row, text in enumerate(texts, start=1) if text is not None and not _is_number(text)
    )
    return InvalidDataset(
        f"the target {name!r} holds {text[:40]!r} in row {row}, which is not a number, and cannot be regressed",
        column=name,
        row=row,
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
