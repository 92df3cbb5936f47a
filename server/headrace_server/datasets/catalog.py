"""Keeps data sets: takes contents in, names them by digest, finds them, and lets them go.

Rows say what exists; the store holds the bytes.  A content is stored before its row is written and removed after its
last row is gone, so a crash between the two leaves bytes that nobody refers to, which `sweep` removes, and never a row
without bytes.  Versions of different data sets share equal contents.
"""

import asyncio
import contextlib
import errno
import hashlib
import re
import secrets
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import structlog
from sqlalchemy import Connection, Row, Select, and_, delete, func, insert, or_, select

from headrace_server.database.database import Database
from headrace_server.database.tables import dataset_versions, datasets
from headrace_server.datasets.dataset import Dataset, DatasetFormat, DatasetVersion, Description
from headrace_server.datasets.inspection import format_of, inspect
from headrace_server.datasets.sources import locate, open_file, pack_images
from headrace_server.errors import (
    DatasetNotFound,
    InvalidDataset,
    InvalidPageToken,
    InvalidSpec,
    TooLarge,
    Violation,
)
from headrace_server.names import DatasetName, is_id
from headrace_server.pages import Page, PageRequest
from headrace_server.settings import DatasetSettings
from headrace_server.storage.atomic_file import AtomicFile
from headrace_server.storage.blob_store import BlobStore
from headrace_server.storage.streaming import read_file, run_to_the_end, write_file

CONCURRENT_INSPECTIONS = 2
"""Reading a content takes a thread for as long as it lasts, and there must be threads left for everything else."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A content that has arrived in full, in a scratch file."""

    path: Path
    size_bytes: int
    digest: str


class Catalog:
    """All data sets of one server.

    `scratch` is a folder for contents on their way in; nothing that is put there outlives its call.
    """

    def __init__(self, database: Database, store: BlobStore, settings: DatasetSettings, scratch: Path) -> None:
        self._database = database
        self._store = store
        self._settings = settings
        self._scratch = scratch
        self._inspections = asyncio.Semaphore(CONCURRENT_INSPECTIONS)
        # Storing and removing the same content take turns: one must not remove what the other is about to refer to.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def store(
        self,
        dataset: str,
        chunks: AsyncIterator[bytes],
        *,
        format: DatasetFormat | None,  # noqa: A002 - the contract's word
        file_name: str,
        digest: str,
    ) -> DatasetVersion:
        """Take in what `chunks` yields as a version of the data set, which is made if it does not exist.

        The same content is the same version, whenever it comes.  Raises InvalidSpec, InvalidDataset, TooLarge,
        StorageFull, and whatever `chunks` raises; nothing is kept then, nor when the call is cancelled.
        """
        known_format = format or format_of(file_name)
        if digest and not _DIGEST.fullmatch(digest):
            raise InvalidSpec([Violation("digest", 'must be "sha256:" and 64 lower-case hexadecimal digits')])
        return await self._take_in(dataset, chunks, known_format, digest)

    async def register(self, dataset: str, uri: str, *, format: DatasetFormat | None) -> DatasetVersion:  # noqa: A002
        """Copy a file, or a folder of images, that the server can reach.  Otherwise like `store`.

        Raises Unsupported for other schemes than file:, InvalidSpec outside of the folders of `datasets.roots`.
        """
        path = await asyncio.to_thread(locate, uri, self._settings.roots)
        if await asyncio.to_thread(path.is_dir):
            if format not in (None, DatasetFormat.IMAGE_ZIP):
                raise InvalidSpec([Violation("format", f"is {format}, but a folder can only be IMAGE_ZIP")])
            return await self._take_in_folder(dataset, path, uri)
        known_format = format or format_of(path.name, "uri")
        async with contextlib.aclosing(read_file(path, open_file=open_file)) as chunks:
            return await self._take_in(dataset, chunks, known_format, "", uri)

    async def get(self, dataset: str) -> Dataset:
        """One data set with its newest version.  Raises DatasetNotFound."""
        async with self._database.read() as connection:
            row = (await connection.execute(_datasets().where(datasets.c.id == dataset))).one_or_none()
        if row is None:
            raise DatasetNotFound(str(DatasetName(dataset)))
        return _to_dataset(row)

    async def version(self, name: DatasetName) -> DatasetVersion:
        """The version of that name, or the newest one.  Raises DatasetNotFound."""
        query = _versions(name.dataset).limit(1)
        if name.version is not None:
            query = query.where(dataset_versions.c.version == name.version)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise DatasetNotFound(str(name))
        return _to_version(row)

    async def list(self, page: PageRequest) -> Page[Dataset]:
        """Data sets by name."""
        query = _datasets().order_by(datasets.c.id).limit(page.size + 1)
        if page.after is not None:
            query = query.where(datasets.c.id > page.after)
        async with self._database.read() as connection:
            found = [_to_dataset(row) for row in await connection.execute(query)]
        return page.page(found, [dataset.id for dataset in found])

    async def list_versions(self, dataset: str, page: PageRequest) -> Page[DatasetVersion]:
        """Versions of a data set, newest first.  Raises DatasetNotFound."""
        query = _versions(dataset).limit(page.size + 1)
        if page.after is not None:
            query = query.where(_is_before(page.after))
        async with self._database.read() as connection:
            exists = await connection.scalar(select(datasets.c.id).where(datasets.c.id == dataset))
            found = [_to_version(row) for row in await connection.execute(query)]
        if exists is None:
            raise DatasetNotFound(str(DatasetName(dataset)))
        return page.page(found, [f"{version.created_at.isoformat()} {version.name.version}" for version in found])

    async def delete(self, dataset: str) -> None:
        """Remove a data set with all its versions, and contents that no other one shares.  Raises DatasetNotFound."""

        def remove(connection: Connection) -> Sequence[str]:
            of_dataset = dataset_versions.c.dataset == dataset
            digests = connection.scalars(select(dataset_versions.c.digest).where(of_dataset)).all()
            connection.execute(delete(dataset_versions).where(of_dataset))
            if connection.execute(delete(datasets).where(datasets.c.id == dataset)).rowcount == 0:
                raise DatasetNotFound(str(DatasetName(dataset)))
            return digests

        digests = await self._database.transact(remove)
        for digest in digests:
            async with self._turn(digest):
                await self._remove_unless_used(digest)
        log.info("datasets.deleted", dataset=dataset, versions=len(digests))

    async def sweep(self) -> int:
        """Remove contents that a crash has left without a version; returns how many.

        Meant for the start: a content that another process stores meanwhile would be taken for such a one.
        """
        async with self._database.read() as connection:
            used = set((await connection.scalars(select(dataset_versions.c.digest))).all())
        stored = {f"sha256:{key.removeprefix('datasets/')}" for key in await self._store.list("datasets/")}
        for digest in stored - used:
            async with self._turn(digest):
                await self._remove_unless_used(digest)
        if stored - used:
            log.info("datasets.orphans_removed", contents=len(stored - used))
        return len(stored - used)

    async def _take_in(
        self,
        dataset: str,
        chunks: AsyncIterator[bytes],
        format: DatasetFormat,  # noqa: A002
        digest: str,
        source_uri: str = "",
    ) -> DatasetVersion:
        async with self._scratch_file() as path:
            file = AtomicFile(path, self._scratch)
            async with contextlib.aclosing(self._limited(chunks)) as bounded:
                size_bytes, found_digest = await write_file(file, bounded, 0o600, is_durable=False)
            if digest and digest != found_digest:
                problem = f"the bytes that arrived have the digest {found_digest}, not {digest}"
                raise InvalidDataset(problem, format, digest=found_digest)
            return await self._admit(dataset, _Arrival(path, size_bytes, found_digest), format, source_uri)

    async def _take_in_folder(self, dataset: str, folder: Path, uri: str) -> DatasetVersion:
        async with self._scratch_file() as path:
            stop = threading.Event()
            loop = asyncio.get_running_loop()
            packing = loop.run_in_executor(None, pack_images, folder, path, self._settings, stop)
            try:
                await asyncio.shield(packing)
            finally:
                stop.set()
                await asyncio.wait([packing])
                packing.exception()  # when this call was cancelled, nobody else asks for it
            arrival = await asyncio.to_thread(_measure, path)
            return await self._admit(dataset, arrival, DatasetFormat.IMAGE_ZIP, uri)

    @contextlib.asynccontextmanager
    async def _scratch_file(self) -> AsyncGenerator[Path, None]:
        path = self._scratch / f"{secrets.token_hex(16)}.dataset"
        await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
        try:
            yield path
        finally:
            await run_to_the_end(partial(path.unlink, missing_ok=True))

    async def _limited(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        num_bytes = 0
        async for chunk in chunks:
            num_bytes += len(chunk)
            if num_bytes > self._settings.max_upload_bytes:
                raise TooLarge("dataset", self._settings.max_upload_bytes, "datasets.max_upload_bytes")
            yield chunk

    async def _admit(
        self,
        dataset: str,
        arrival: _Arrival,
        format: DatasetFormat,  # noqa: A002
        source_uri: str,
    ) -> DatasetVersion:
        assert is_id(dataset), dataset
        version = DatasetVersion(
            dataset=dataset,
            format=format,
            digest=arrival.digest,
            size_bytes=arrival.size_bytes,
            description=Description(num_rows=0),
            source_uri=source_uri,
            created_at=datetime.now(UTC),
        )
        async with self._database.read() as connection:
            if existing := await connection.run_sync(_find_same, version):
                return existing
        description = await self._inspect(arrival.path, format)
        version = version.model_copy(update={"description": description})
        async with self._turn(version.digest):
            try:
                blob = await self._store.put_file(version.blob_key, arrival.path)
                if blob.digest != version.digest:
                    raise OSError(errno.EIO, "the scratch file did not read twice alike", str(arrival.path))
                kept = await self._database.transact(partial(_record, version=version))
            except Exception:
                # Not when cancelled: then nobody knows yet whether the row will be there.
                await self._remove_unless_used(version.digest)
                raise
        log.info("datasets.stored", version=str(kept.name), format=str(format), bytes=kept.size_bytes)
        return kept

    async def _inspect(self, path: Path, format: DatasetFormat) -> Description:  # noqa: A002
        await self._inspections.acquire()
        reading = asyncio.get_running_loop().run_in_executor(None, inspect, path, format, self._settings)
        # A thread cannot be stopped: when the caller leaves, the permit comes back when the thread does.
        reading.add_done_callback(self._end_inspection)
        return await asyncio.shield(reading)

    def _end_inspection(self, reading: asyncio.Future[Description]) -> None:
        self._inspections.release()
        reading.exception()  # when the caller has left, nobody else asks for it

    def _turn(self, digest: str) -> asyncio.Lock:
        return self._turns.setdefault(digest, asyncio.Lock())

    async def _remove_unless_used(self, digest: str) -> None:
        async with self._database.read() as connection:
            query = select(func.count()).where(dataset_versions.c.digest == digest)
            num_versions = await connection.scalar(query)
        if not num_versions:
            await self._store.delete(f"datasets/{digest.removeprefix('sha256:')}")


def _record(connection: Connection, version: DatasetVersion) -> DatasetVersion:
    """Write the row of a version, and of its data set if it is the first; the version as it is then kept."""
    if existing := _find_same(connection, version):
        return existing
    newest = connection.scalar(
        select(func.max(dataset_versions.c.created_at)).where(dataset_versions.c.dataset == version.dataset)
    )
    if newest is None:
        connection.execute(insert(datasets).values(id=version.dataset, created_at=version.created_at))
    elif newest >= version.created_at:  # the clock was put back, and yet this version is newer
        version = version.model_copy(update={"created_at": newest + timedelta(microseconds=1)})
    connection.execute(
        insert(dataset_versions).values(
            dataset=version.dataset,
            version=version.name.version,
            digest=version.digest,
            format=version.format,
            size_bytes=version.size_bytes,
            description=version.description.model_dump(mode="json"),
            source_uri=version.source_uri,
            created_at=version.created_at,
        )
    )
    return version


def _find_same(connection: Connection, version: DatasetVersion) -> DatasetVersion | None:
    """The version of the same data set with the same content.  Raises InvalidDataset if it has another format."""
    query = _versions(version.dataset).where(dataset_versions.c.version == version.name.version)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    same = _to_version(row)
    if (same.digest, same.format) != (version.digest, version.format):
        raise InvalidDataset(f"{same.name} has the same content but the format {same.format}", version.format)
    return same


def _versions(dataset: str) -> Select[Any]:
    return (
        select(dataset_versions)
        .where(dataset_versions.c.dataset == dataset)
        .order_by(dataset_versions.c.created_at.desc(), dataset_versions.c.version.desc())
    )


def _datasets() -> Select[Any]:
    """One row for each data set: its newest version, how many there are, and when the first was made."""
    rank = func.row_number().over(
        partition_by=dataset_versions.c.dataset,
        order_by=(dataset_versions.c.created_at.desc(), dataset_versions.c.version.desc()),
    )
    num_versions = func.count().over(partition_by=dataset_versions.c.dataset)
    ranked = select(dataset_versions, rank.label("rank"), num_versions.label("num_versions")).subquery()
    return select(ranked, datasets.c.created_at.label("dataset_created_at")).join_from(
        datasets, ranked, and_(ranked.c.dataset == datasets.c.id, ranked.c.rank == 1)
    )


def _is_before(key: str) -> Any:
    moment, _, version = key.partition(" ")
    try:
        created_at = datetime.fromisoformat(moment)
    except ValueError as error:
        raise InvalidPageToken from error
    column = dataset_versions.c.created_at
    return or_(column < created_at, and_(column == created_at, dataset_versions.c.version < version))


def _to_version(row: Row[Any]) -> DatasetVersion:
    return DatasetVersion(
        dataset=row.dataset,
        format=DatasetFormat(row.format),
        digest=row.digest,
        size_bytes=row.size_bytes,
        description=Description.model_validate(row.description),
        source_uri=row.source_uri,
        created_at=row.created_at,
    )


def _to_dataset(row: Row[Any]) -> Dataset:
    return Dataset(
        id=row.dataset, latest=_to_version(row), num_versions=row.num_versions, created_at=row.dataset_created_at
    )


def _measure(path: Path) -> _Arrival:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return _Arrival(path, file.tell(), f"sha256:{digest}")
