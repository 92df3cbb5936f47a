"""What a trainer needs before it can start: the data set, and the checkpoint that it continues from; both verified.

Knows the store; knows no trainer.
"""

import asyncio
import os
import shutil
from pathlib import Path

import structlog

from headrace_server.errors import Invalid, InvalidDataset
from headrace_server.storage.blob_store import BlobStore
from headrace_server.trainers.reports import WarningRaised
from headrace_server.training.checkpoints import Damaged, StoredCheckpoint, digest_of, list_checkpoints
from headrace_server.worker.outbox import Outbox
from headrace_server.worker.persistence import Persistence

log = structlog.get_logger()


class Materials:
    """Fetches into folders below `workspace`."""

    def __init__(
        self, store: BlobStore, workspace: Path, outbox: Outbox, persistence: Persistence | None = None
    ) -> None:
        self._store = store
        self._workspace = workspace
        self._outbox = outbox
        self._persistence = persistence or Persistence(total_seconds=120)

    async def dataset(self, key: str, digest: str) -> Path:
        """The content of a data set as a local file, which stays even if the store lets go of it.

        Raises InvalidDataset when the store has lost or damaged it, OSError or StorageFull after long insistence.
        """
        path = self._workspace / "data" / "content"
        try:
            await self._persistence.insist("the data set", lambda: self._fetch_file(key, path), self._note)
        except KeyError:
            raise InvalidDataset(f"its content {key} is no longer in the store") from None
        found, _ = await asyncio.to_thread(digest_of, path)
        if found != digest:
            raise InvalidDataset(f"its content {key} is damaged: it has the digest {found}, not {digest}")
        return path

    async def weights(self, key: str, digest: str) -> Path:
        """The weights to begin with, as a local file.

        Raises InvalidStart when the store has lost or damaged them, OSError or StorageFull after long insistence.
        """
        path = self._workspace / "start" / "weights.safetensors"
        try:
            await self._persistence.insist("the weights to begin with", lambda: self._fetch_file(key, path), self._note)
        except KeyError:
            raise InvalidStart(f"the weights to begin with, {key}, are no longer in the store") from None
        found, _ = await asyncio.to_thread(digest_of, path)
        if found != digest:
            raise InvalidStart(f"the weights to begin with, {key}, are damaged: their digest is {found}, not {digest}")
        return path

    async def checkpoint(self, prefix: str, manifest_key: str) -> Path | None:
        """The checkpoint of a manifest as a local folder.

        Where it is damaged or gone, with a warning, the one before it below `prefix`; None when none is left.
        Raises OSError or StorageFull after long insistence.
        """
        wanted = StoredCheckpoint.parse(manifest_key)
        others = await self._persistence.insist(
            "the list of checkpoints", lambda: list_checkpoints(self._store, prefix), self._note
        )
        candidates = [*([wanted] if wanted else []), *(other for other in others if other != wanted)]
        for candidate in candidates:
            try:
                return await self._checkpoint(candidate)
            except _Unusable as error:
                # An incomplete one was never announced, so nothing is lost with it.
                if candidate == wanted or not error.is_incomplete:
                    message = f"the checkpoint of step {candidate.step} cannot be used: {error}"
                    await self._outbox.add([WarningRaised(code="CHECKPOINT_DAMAGED", message=message)])
        message = "no usable checkpoint is left: the training starts from the beginning"
        await self._outbox.add([WarningRaised(code="CHECKPOINTS_LOST", message=message)])
        return None

    async def _fetch_file(self, key: str, path: Path) -> None:
        local = await self._store.local_path(key)
        if local is None or not await asyncio.to_thread(_link, local, path):
            await self._store.fetch(key, path)

    async def _checkpoint(self, stored: StoredCheckpoint) -> Path:
        folder = self._workspace / "resume" / stored.folder.rstrip("/").rpartition("/")[2]

        async def fetch() -> _Unusable | None:
            try:
                await self._fetch_checkpoint(stored, folder)
            except KeyError as error:
                return _Unusable(f"{error.args[0]} is missing", is_incomplete=error.args[0] == stored.manifest_key)
            except Damaged as error:
                return _Unusable(str(error))
            return None

        if (problem := await self._persistence.insist("the checkpoint", fetch, self._note)) is not None:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise problem
        return folder

    async def _fetch_checkpoint(self, stored: StoredCheckpoint, folder: Path) -> None:
        manifest = await stored.manifest(self._store)
        for file in manifest.files:
            blob = await self._store.fetch(f"{stored.folder}{file.path}", folder / file.path)
            if (blob.digest, blob.size_bytes) != (file.digest, file.size_bytes):
                raise Damaged(f"{file.path} is not what was written")

    async def _note(self, problem: str) -> None:
        await self._outbox.say(f"the store refuses, trying again: {problem}")


class InvalidStart(Invalid):
    """What a training was to begin with is not there any more.  Internal: it reaches people as why a job failed."""

    reason = "INVALID_SPEC"


class _Unusable(Exception):
    def __init__(self, problem: str, is_incomplete: bool = False) -> None:
        super().__init__(problem)
        self.is_incomplete = is_incomplete


def _link(source: Path, path: Path) -> bool:
    """Give a file a second name, so that it outlives its first; False where the file system cannot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        os.link(source, path)
    except OSError as error:
        log.debug("materials.not_linked", error=str(error))
        return False
    return True
