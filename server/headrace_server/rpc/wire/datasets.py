"""Data sets, from the house's values to the contract's messages."""

from headrace.datasets.v1 import dataset_pb2 as pb
from headrace_server.datasets.dataset import Dataset, DatasetFormat, DatasetVersion
from headrace_server.errors import InvalidName, InvalidSpec, Violation
from headrace_server.names import DatasetName
from headrace_server.rpc.wire.events import time_to_proto

_FORMATS: dict[int, DatasetFormat | None] = {
    pb.DATASET_FORMAT_UNSPECIFIED: None,
    **{pb.DatasetFormat.Value(f"DATASET_FORMAT_{name}"): name for name in DatasetFormat},
}


def format_from_proto(number: int, field: str) -> DatasetFormat | None:
    """The format that was asked for; None when it is to be told by the file name.  Raises InvalidSpec."""
    if number not in _FORMATS:
        raise InvalidSpec([Violation(field, f"must be one of {', '.join(DatasetFormat)}")])
    return _FORMATS[number]


def dataset_id(text: str, field: str) -> str:
    """The last part of `datasets/{dataset}`.  Raises InvalidName, also for a version."""
    name = DatasetName.parse(text, field)
    if name.version is not None:
        raise InvalidName(text, "datasets/{dataset}", field)
    return name.dataset


def version_to_proto(version: DatasetVersion) -> pb.DatasetVersion:
    """One immutable content."""
    described = version.description
    return pb.DatasetVersion(
        name=str(version.name),
        format=pb.DatasetFormat.Value(f"DATASET_FORMAT_{version.format}"),
        digest=version.digest,
        size_bytes=version.size_bytes,
        num_rows=described.num_rows,
        columns=[
            pb.Column(name=column.name, type=column.type, shape=column.shape, num_missing=column.num_missing)
            for column in described.columns
        ],
        class_names=described.class_names,
        source_uri=version.source_uri,
        create_time=time_to_proto(version.created_at),
    )


def dataset_to_proto(dataset: Dataset) -> pb.Dataset:
    """A line of versions."""
    return pb.Dataset(
        name=f"datasets/{dataset.id}",
        latest_version=version_to_proto(dataset.latest),
        num_versions=dataset.num_versions,
        create_time=time_to_proto(dataset.created_at),
    )
