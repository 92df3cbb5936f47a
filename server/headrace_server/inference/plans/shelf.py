"""Where the files lie that were made for plans: in the store, below `plans/{model}/{version}/{environment}/`.

A file that no verdict names any more is removed: when its verdict is replaced or forgotten, and, of what a server has
left behind that died between the two, when the next one starts.  Belongs to the event loop.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import structlog
from pydantic import ValidationError

from headrace_server.inference.plans.environment import digest_of
from headrace_server.inference.plans.measurement import Measurement, PreparedFile
from headrace_server.models.plan_records import PlanRecords
from headrace_server.models.version import ModelVersion
from headrace_server.storage.blob_store import BlobStore

PREFIX = "plans/"
_DIGITS = 16

log = structlog.get_logger()


class Shelf:
    """The prepared files of all versions."""

    def __init__(self, store: BlobStore, records: PlanRecords) -> None:
        self._store = store
        self._records = records

    async def find(self, version: ModelVersion, environment: str) -> Measurement | None:
        """What was measured of a version in this environment; None when nothing was, or an older release did."""
        return _read(await self._records.find(version, environment))

    async def keep_file(self, version: ModelVersion, environment: str, file: PreparedFile, path: Path) -> None:
        """Store a file that was made for a plan; a verdict has to name it soon.  Raises OSError, StorageFull."""
        blob = await self._store.put_file(key_of(version, environment, file), path)
        assert blob.digest == file.digest, "a prepared file has changed while it was stored"

    async def keep(self, version: ModelVersion, measurement: Measurement) -> None:
        """Keep a verdict in the place of the one before it, and remove the files that only that one has named."""
        environment = digest_of(measurement.environment)
        body = measurement.model_dump(mode="json")
        dropped = await self._records.put(version, environment, body, measurement.measured_at)
        for other in dropped:
            await self._store.delete_all(_folder(version, other))
        named = set(_keys(version, environment, measurement))
        await self._remove(key for key in await self._store.list(_folder(version, environment)) if key not in named)

    async def forget(self, version: ModelVersion) -> None:
        """Drop what was measured of a version in any environment, and all its files."""
        await self._records.forget(version)
        await self._store.delete_all(f"{PREFIX}{version.model}/{version.version}/")

    async def sweep(self) -> int:
        """Remove the files that no verdict names; returns how many.

        To be called at start, while nothing else measures with this store.
        """
        stored = await self._store.list(PREFIX)
        if not stored:
            return 0
        named: set[str] = set()
        for model, number, environment, body in await self._records.all():
            measurement = _read(body)
            if measurement is not None:
                folder = f"{PREFIX}{model}/{number}/{environment}/"
                named.update(folder + _file_name(file) for file in _files(measurement))
        orphans = [key for key in stored if key not in named]
        await self._remove(orphans)
        if orphans:
            log.info("plans.leftovers_removed", files=len(orphans))
        return len(orphans)

    async def _remove(self, keys: Iterable[str]) -> None:
        for key in keys:
            await self._store.delete(key)


def key_of(version: ModelVersion, environment: str, file: PreparedFile) -> str:
    """The key of a file; another content has another one, so that nothing changes under who opens it."""
    return _folder(version, environment) + _file_name(file)


def _folder(version: ModelVersion, environment: str) -> str:
    return f"{PREFIX}{version.model}/{version.version}/{environment}/"


def _file_name(file: PreparedFile) -> str:
    return f"{file.digest.removeprefix('sha256:')[:_DIGITS]}/{file.name}"


def _files(measurement: Measurement) -> Iterator[PreparedFile]:
    return (trial.prepared for trial in measurement.trials if trial.prepared is not None)


def _keys(version: ModelVersion, environment: str, measurement: Measurement) -> Iterator[str]:
    return (key_of(version, environment, file) for file in _files(measurement))


def _read(body: object) -> Measurement | None:
    if body is None:
        return None
    try:
        return Measurement.model_validate(body)
    except ValidationError:
        return None
