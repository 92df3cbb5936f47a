"""What training needs of its neighbours, and no more: data sets to read, families to train, a place for the result."""

from collections.abc import Sequence
from typing import Protocol

from headrace_server.datasets.dataset import DatasetVersion
from headrace_server.models.version import ModelVersion, NewVersion
from headrace_server.names import DatasetName, ModelName
from headrace_server.trainers.family import Family


class Datasets(Protocol):
    """Finds data sets; `datasets.catalog.Catalog` is one."""

    async def version(self, name: DatasetName) -> DatasetVersion:
        """One version, the newest when the name has none.  Raises DatasetNotFound."""
        ...


class Models(Protocol):
    """Keeps results; `models.registry.Registry` is one."""

    async def register(self, new: NewVersion, *, origin: str, origin_digest: str) -> ModelVersion:
        """Number and keep a version; the same origin is the same version, however often it is registered."""
        ...

    async def find_origin(self, origin: str) -> ModelVersion | None:
        """The version that was registered with this origin; None when there is none."""
        ...

    async def resolve(self, name: ModelName) -> ModelVersion:
        """The version that a name means.  Raises ModelNotFound."""
        ...


class KnownFamilies(Protocol):
    """Knows what can be trained; `trainers.catalogue.Families` is one."""

    def get(self, name: str) -> Family | None:
        """The family of that name, if there is one."""
        ...

    def list(self) -> Sequence[Family]:
        """All families, by name."""
        ...
