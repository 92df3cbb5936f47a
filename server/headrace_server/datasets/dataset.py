"""What a data set is: immutable versions of one content each, named by digest."""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from headrace_server.names import DatasetName


class DatasetFormat(StrEnum):
    """How a content is laid out; names as in the contract."""

    CSV = "CSV"
    PARQUET = "PARQUET"
    NPZ = "NPZ"
    IMAGE_ZIP = "IMAGE_ZIP"


class Column(BaseModel):
    """A column of a table, or one array."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    type: str
    """As Apache Arrow or NumPy name it: "int64", "double", "string", "float32"…"""
    shape: tuple[int, ...] = ()
    """For arrays: the length of each axis after the first."""
    num_missing: int = 0


class Description(BaseModel):
    """What reading a content once found in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_rows: int
    columns: tuple[Column, ...] = ()
    class_names: tuple[str, ...] = ()


class DatasetVersion(BaseModel):
    """One immutable content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    format: DatasetFormat
    digest: str
    """"sha256:" and 64 hexadecimal digits."""
    size_bytes: int
    description: Description
    source_uri: str = ""
    created_at: datetime

    @property
    def name(self) -> DatasetName:
        """`datasets/{dataset}/versions/{first 16 digits of the digest}`."""
        return DatasetName(self.dataset, self.digest.removeprefix("sha256:")[:16])

    @property
    def blob_key(self) -> str:
        """Where the content lies in the store.  Versions of different data sets share equal content."""
        return f"datasets/{self.digest.removeprefix('sha256:')}"


class Dataset(BaseModel):
    """A line of versions under one name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    latest: DatasetVersion
    num_versions: int
    created_at: datetime
