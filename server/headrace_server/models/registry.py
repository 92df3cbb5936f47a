"""The registry: numbered, immutable versions of models, and the names that point to them.

Rows are in the database, files in the blob store under `models/{model}/{random}/`, and what names mean is remembered in
memory, so that `resolve` costs the predict path next to nothing.  Knows nothing of how a version is run.
"""

import asyncio
import hashlib
import json
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from headrace_server.database.database import Database
from headrace_server.errors import (
    HeadraceError,
    InvalidModel,
    InvalidName,
    InvalidPageToken,
    InvalidSpec,
    ModelNotFound,
    RequestIdReused,
    TooLarge,
    Unsupported,
    Violation,
)
from headrace_server.models import ensemble_members, folder, records
from headrace_server.models.artifact_files import PREFIX, prefix_of, store_files
from headrace_server.models.ensemble import Ensemble
from headrace_server.models.lines import Line, Lines
from headrace_server.models.serving import ServingOptions
from headrace_server.models.version import Artifact, ArtifactFormat, Lineage, Model, ModelVersion, NewVersion
from headrace_server.names import ID_RULE, ModelName, is_id
from headrace_server.pages import Page, PageRequest
from headrace_server.settings import ModelSettings
from headrace_server.storage.atomic_file import AtomicFile
from headrace_server.storage.blob_store import BlobStore
from headrace_server.storage.streaming import write_file

LONGEST_REQUEST_ID = 128
_ATTEMPTS = 5
_FILE_NAMES = {ArtifactFormat.ONNX: folder.ONNX_FILE, ArtifactFormat.TORCH_EXPORT: folder.TORCH_FILE}

log = structlog.get_logger()


class Registry:
    """Every model that this server knows."""

    def __init__(self, database: Database, store: BlobStore, settings: ModelSettings, scratch: Path) -> None:
        """`scratch` is a folder for uploads that are being checked; it may vanish between starts."""
        self._database = database
        self._store = store
        self._settings = settings
        self._scratch = scratch / "models"
        self._lines = Lines()
        self._serving_listeners: list[Callable[[str, ServingOptions], None]] = []

    async def sweep(self) -> int:
        """Remove what uploads have left behind that died between storing a file and registering it; return how many.

        To be called at start, while nothing else registers models in this store.
        """
        await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)
        stored = await self._store.list(PREFIX)
        async with self._database.read() as connection:
            referenced = await connection.run_sync(records.referenced_keys)
        orphans = [key for key in stored if key not in referenced]
        for key in orphans:
            await self._store.delete(key)
        if orphans:
            log.info("models.leftovers_removed", files=len(orphans))
        return len(orphans)

    def watch_lines(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with a model's id in the moment in which what its names mean changes, or is not known."""
        self._lines.watch(listener)

    def line(self, model: str) -> Line | None:
        """Where the names of a model point, if it is known without asking the database."""
        return self._lines.look(model)

    # Adding versions.

    async def register(self, new: NewVersion, *, origin: str, origin_digest: str) -> ModelVersion:
        """Number a version whose artifacts are in the store already.

        The same origin ("job:…", "upload:…") returns the version that it was registered as; "" is never the same.

        Raises RequestIdReused when the origin had another digest, InvalidName for a bad model id, StorageFull.
        """
        _check_model(new.model)

        def add(connection: Connection) -> ModelVersion:
            found = records.find_origin(connection, origin) if origin else None
            if found is not None:
                version, digest = found
                if digest != origin_digest:
                    raise RequestIdReused(origin.partition(":")[2], str(version.name))
                return version
            return records.add_version(connection, new, origin or None, origin_digest, datetime.now(UTC))

        return await self._add(new.model, add)

    async def register_file(
        self,
        model: str,
        format: ArtifactFormat,  # noqa: A002 - the contract's word
        chunks: AsyncIterator[bytes],
        *,
        digest: str,
        request_id: str,
    ) -> ModelVersion:
        """Register an uploaded program; its signature is read from the file itself.  Nothing is kept of a failed one.

        `digest` ("sha256:…") is compared when it is not empty.  Same request id and content: the same version.

        Raises InvalidModel, TooLarge, Unsupported, InvalidName, InvalidSpec, RequestIdReused, StorageFull.
        """
        self._check_upload(model, format, request_id)
        token = secrets.token_hex(16)
        drafts = self._scratch / token
        path = drafts / _FILE_NAMES[format]
        try:
            await asyncio.to_thread(drafts.mkdir, parents=True)
            size_bytes, actual = await write_file(AtomicFile(path, drafts), self._limited(chunks), is_durable=False)
            if size_bytes == 0:
                raise InvalidModel("the file is empty")
            if digest and digest != actual:
                raise InvalidModel(f"the file has the digest {actual}, announced was {digest}")
            signature = await asyncio.to_thread(folder.read_signature, path, format)
            file = folder.OfferedFile(path, path.name, format, actual, size_bytes)
            artifacts = await store_files(self._store, model, token, [file])
        finally:
            await asyncio.to_thread(shutil.rmtree, drafts, ignore_errors=True)
        new = NewVersion(model=model, signature=signature, artifacts=artifacts)
        body = hashlib.sha256(json.dumps([model, format, actual]).encode()).hexdigest()
        version = await self._register_stored(
            token, new, lambda: self.register(new, origin=_upload(request_id), origin_digest=f"sha256:{body}")
        )
        log.info("models.uploaded", model=str(version.name), bytes=size_bytes, format=format)
        return version

    async def serve_path(self, model: str, path: Path) -> ModelVersion:
        """Register a model that lies on this machine: an .onnx or .pt2 file, or a folder; see `folder.py`.

        Returns the version that was last registered from a path when its content is the same.

        Raises InvalidModel, InvalidName, StorageFull.
        """
        _check_model(model)
        offer = await asyncio.to_thread(folder.survey, path)
        prefix = f"path:{model}:"
        async with self._database.read() as connection:
            found = await connection.run_sync(records.newest_with_origin, model, prefix)
        if found is not None and found[1] == offer.digest:
            return found[0]
        signature = await asyncio.to_thread(folder.signature_of, offer)
        token = secrets.token_hex(16)
        manifest = offer.manifest
        new = NewVersion(
            model=model,
            signature=signature,
            artifacts=await store_files(self._store, model, token, offer.files),
            metrics=manifest.metrics if manifest is not None else {},
            lineage=manifest.lineage if manifest is not None else Lineage(),
        )
        version = await self._register_stored(
            token, new, lambda: self.register(new, origin=f"{prefix}{token}", origin_digest=offer.digest)
        )
        log.info("models.registered_from_path", model=str(version.name), path=str(path))
        return version

    async def register_ensemble(self, model: str, ensemble: Ensemble, *, request_id: str) -> ModelVersion:
        """Register an ensemble.  Same request id and ensemble: the same version.

        Raises InvalidSpec with everything that is wrong with it, InvalidName, RequestIdReused.
        """
        _check_model(model)
        new, digest = await ensemble_members.prepare(model, ensemble, self.resolve)
        version = await self.register(new, origin=_upload(request_id), origin_digest=digest)
        log.info("models.ensemble_registered", model=str(version.name), members=len(ensemble.members))
        return version

    # Finding versions.

    async def resolve(self, name: ModelName) -> ModelVersion:
        """The version that a name means now: a bare name that of the alias "default", else the newest.

        Answers from memory, as of the last change that was answered.  Raises ModelNotFound.
        """
        number = name.version
        if number is None:
            line = self._lines.line(name.model) or await self._read_line(name.model)
            number = line.find(name.alias) if line is not None else None
            if number is None:
                raise ModelNotFound(str(name))
        version = self._lines.version(name.model, number)
        if version is None:
            async with self._database.read() as connection:
                version = await connection.run_sync(records.read_version, name.model, number)
            if version is None:
                raise ModelNotFound(str(name))
            self._lines.remember_version(version)
        return version

    async def find_origin(self, origin: str) -> ModelVersion | None:
        """The version that was registered with this origin, such as "job:…"; None when there is none."""
        async with self._database.read() as connection:
            found = await connection.run_sync(records.find_origin, origin)
        return None if found is None else found[0]

    async def get(self, model: str) -> Model:
        """One model.  Raises ModelNotFound."""
        async with self._database.read() as connection:
            found = await connection.run_sync(records.read_model, model)
        if found is None:
            raise ModelNotFound(f"models/{model}")
        return found

    async def list(self, page: PageRequest) -> Page[Model]:
        """Models by name."""
        async with self._database.read() as connection:
            found = await connection.run_sync(records.read_models, page.after, page.size + 1)
        return page.page(found, [model.id for model in found])

    async def list_versions(self, model: str, page: PageRequest) -> Page[ModelVersion]:
        """Versions of a model, newest first.  Raises ModelNotFound, InvalidPageToken."""
        before = None
        if page.after is not None:
            if not re.fullmatch("[0-9]{1,9}", page.after):
                raise InvalidPageToken
            before = int(page.after)
        async with self._database.read() as connection:
            found = await connection.run_sync(records.read_versions, model, before, page.size + 1)
        if not found and before is None:
            raise ModelNotFound(f"models/{model}")
        return page.page(found, [str(version.version) for version in found])

    def read_artifact(self, version: ModelVersion, path: str) -> tuple[Artifact, AsyncIterator[bytes]]:
        """One file of a version, and its bytes.  Raises ModelNotFound."""
        for artifact in version.artifacts:
            if artifact.path == path:
                return artifact, self._store.read(artifact.key)
        known = ", ".join(artifact.path for artifact in version.artifacts)
        raise ModelNotFound(f"{version.name}/{path}", f"its files are {known}")

    # Aliases.

    async def assign_alias(self, model: str, alias: str, version: int) -> Model:
        """Point an alias to a version: every later `resolve` sees it.  Raises ModelNotFound, InvalidSpec."""
        if not is_id(alias):
            raise InvalidSpec([Violation("alias", f"must be {ID_RULE}")])

        def put(connection: Connection) -> Model | None:
            if records.read_version(connection, model, version) is None:
                raise ModelNotFound(str(ModelName(model, version)))
            records.put_alias(connection, model, alias, version, datetime.now(UTC))
            return records.read_model(connection, model)

        changed = await self._change(model, put)
        log.info("models.alias_assigned", model=str(ModelName(model, version)), alias=alias)
        return changed

    async def delete_alias(self, model: str, alias: str) -> Model:
        """Take an alias away.  Raises ModelNotFound."""

        def drop(connection: Connection) -> Model | None:
            if not records.drop_alias(connection, model, alias):
                raise ModelNotFound(str(ModelName(model, alias=alias)))
            return records.read_model(connection, model)

        changed = await self._change(model, drop)
        log.info("models.alias_deleted", model=f"models/{model}", alias=alias)
        return changed

    # Serving options.

    async def serving(self, model: str) -> ServingOptions:
        """How the versions of a model are served; from memory, as `resolve`.  Raises ModelNotFound."""
        line = self._lines.line(model) or await self._read_line(model)
        if line is None:
            raise ModelNotFound(f"models/{model}")
        return line.serving

    async def change_serving(self, model: str, change: Callable[[ServingOptions], ServingOptions]) -> Model:
        """Replace the serving options of a model by what `change` makes of them.

        `change` runs on the database's thread, and raises for what must not be.  Raises that, ModelNotFound.
        """

        def put(connection: Connection) -> Model | None:
            if not records.change_serving(connection, model, change):
                raise ModelNotFound(f"models/{model}")
            return records.read_model(connection, model)

        changed = await self._change(model, put)
        log.info("models.serving_changed", model=f"models/{model}", **changed.serving.model_dump(mode="json"))
        for listener in self._serving_listeners:
            listener(model, changed.serving)
        return changed

    def watch_serving(self, listener: Callable[[str, ServingOptions], None]) -> None:
        """Call `listener` with a model's id and its new serving options, whenever they were changed."""
        self._serving_listeners.append(listener)

    # Inside.

    async def _change(self, model: str, change_rows: Callable[[Connection], Model | None]) -> Model:
        """Run a transaction that returns the model as it is afterwards; from its end on everybody sees it so."""
        with self._lines.changing(model) as change:
            changed = await self._database.transact(change_rows)
            assert changed is not None
            change.line = _line_of(changed)
        return changed

    async def _add(self, model: str, add: Callable[[Connection], ModelVersion]) -> ModelVersion:
        """Run a transaction that numbers a version, again when another server takes the number or the origin first."""

        def add_and_look(connection: Connection) -> tuple[ModelVersion, Model]:
            version = add(connection)
            changed = records.read_model(connection, model)
            assert changed is not None
            return version, changed

        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self._lines.changing(model) as change:
                    version, changed = await self._database.transact(add_and_look)
                    change.line = _line_of(changed)
                return version
            except IntegrityError:
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError

    async def _register_stored(
        self, token: str, new: NewVersion, register: Callable[[], Awaitable[ModelVersion]]
    ) -> ModelVersion:
        """Register what `store_files` has stored; take it away again when it is not what the version uses.

        When it is not known how the transaction ended (the caller has gone, the database failed), files are left to
        `sweep`: a version must never lose its own.
        """
        try:
            version = await register()
        except HeadraceError:
            await self._store.delete_all(prefix_of(new.model, token))
            raise
        if version.artifacts != new.artifacts:
            await self._store.delete_all(prefix_of(new.model, token))
        return version

    def _check_upload(self, model: str, format: ArtifactFormat, request_id: str) -> None:  # noqa: A002
        _check_model(model)
        if len(request_id) > LONGEST_REQUEST_ID:
            raise InvalidSpec([Violation("header.request_id", f"must have at most {LONGEST_REQUEST_ID} characters")])
        if format not in _FILE_NAMES:
            raise InvalidSpec([Violation("header.format", "must be FORMAT_ONNX or FORMAT_TORCH_EXPORT")])
        if format is ArtifactFormat.TORCH_EXPORT and not self._settings.accept_torch_uploads:
            raise Unsupported(
                "uploading torch.export programs, which can run code of their author when they are loaded,",
                "upload ONNX, or set models.accept_torch_uploads if every caller is trusted",
            )

    async def _limited(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        size_bytes = 0
        async for chunk in chunks:
            size_bytes += len(chunk)
            if size_bytes > self._settings.max_upload_bytes:
                raise TooLarge("model", self._settings.max_upload_bytes, "models.max_upload_bytes")
            yield chunk

    async def _read_line(self, model: str) -> Line | None:
        moment = self._lines.moment
        async with self._database.read() as connection:
            line = await connection.run_sync(records.read_line, model)
        if line is not None:
            self._lines.remember(model, line, moment)
        return line


def _line_of(model: Model) -> Line:
    return Line(latest_version=model.latest_version, aliases=model.aliases, serving=model.serving)


def _check_model(model: str) -> None:
    if not is_id(model):
        raise InvalidName(f"models/{model}", "models/{model}", "model")


def _upload(request_id: str) -> str:
    return f"upload:{request_id}" if request_id else ""
