"""What tables of every layout share: rules for names, and one meaning of "missing"."""

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.datasets.formats.names import LONGEST_NAME, is_clean, shown
from headrace_server.errors import InvalidDataset

MAX_COLUMNS = 100_000


def check_names(names: Sequence[str], format: DatasetFormat) -> None:  # noqa: A002 - the contract's word
    """Raise InvalidDataset unless there are names, each of them unique, not blank, and fit to be shown."""
    if not names:
        raise InvalidDataset("there are no columns", format)
    if len(names) > MAX_COLUMNS:
        raise InvalidDataset(f"there are {len(names):,} columns, and at most {MAX_COLUMNS:,} are allowed", format)
    for position, name in enumerate(names, start=1):
        if not name.strip():
            raise InvalidDataset(f"column {position} has no name", format, column=position)
        if not is_clean(name):
            raise InvalidDataset(
                f"the name of column {position} has control characters, or more than {LONGEST_NAME} of any kind",
                format,
                column=position,
            )
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise InvalidDataset(f"{count} columns have the same name, {shown(name)}", format, column=name)


def nan_to_null(values: pa.Array) -> pa.Array:
    """Null and NaN both mean "missing"; afterwards there is only null."""
    if not pa.types.is_floating(values.type):
        return values
    return pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
