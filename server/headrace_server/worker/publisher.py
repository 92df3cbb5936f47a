"""Carries checkpoints and exports from the trainer's folders to the store, tells of them, and removes the folders.

Works beside the training, one piece after another, in the order in which they were written.  A store that refuses is
tried again for long, while the training goes on.  When the trainer writes checkpoints faster than the store takes them,
those that wait and are neither the newest nor the newest best are given up.

In the store those checkpoints are kept that the job's policy names, the one that was published last among them; all
others of the job are removed, but only once those that replace them are stored and verified.
"""

import asyncio
import shutil
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import structlog

from headrace_server.models.version import Artifact
from headrace_server.storage.blob_store import Blob, BlobStore
from headrace_server.trainers.job_file import ExportManifest
from headrace_server.trainers.recipe import CheckpointPolicy
from headrace_server.trainers.reports import (
    CheckpointWritten,
    ExportWritten,
    PhaseChanged,
    ProfileWritten,
    WarningRaised,
)
from headrace_server.training.assignment import PUBLISHED_EXPORT_FILE, PublishedExport
from headrace_server.training.checkpoints import (
    Damaged,
    StoredCheckpoint,
    choose_kept,
    describe_folder,
    digest_of,
    list_checkpoints,
)
from headrace_server.training.events import CheckpointSaved, ProfileRecorded
from headrace_server.training.session import Exported
from headrace_server.worker.outbox import Outbox
from headrace_server.worker.persistence import REFUSALS, Persistence

EXPORT_FILE = "export.json"
TRACE_FILE = "trace.json.gz"

T = TypeVar("T")

_Work: TypeAlias = CheckpointWritten | ExportWritten | ProfileWritten

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where this attempt's results come from, and where in the store they go."""

    source: Path
    """The trainer's folder; nothing outside of it is published, or removed."""
    checkpoint_prefix: str
    artifact_prefix: str
    profile_prefix: str = "profiles/"


class Publisher:
    """See the module.  `run` must be running for anything to be published."""

    def __init__(
        self,
        store: BlobStore,
        shelf: Shelf,
        policy: CheckpointPolicy,
        outbox: Outbox,
        persistence: Persistence | None = None,
    ) -> None:
        self._store = store
        self._shelf = shelf
        self._policy = policy
        self._outbox = outbox
        self._persistence = persistence or Persistence()
        self._waiting: deque[_Work] = deque()
        self._is_busy = False
        self._bell = asyncio.Event()
        # Those in the store that are known, and whether each was the best when it was evaluated.
        self._complete: dict[StoredCheckpoint, bool] = {}
        self._is_refusing = False
        self.has_published_export = False
        self.problem = ""
        """Why something could not be published at all; empty while nothing was lost."""
        self.lost_store = asyncio.Event()
        """Set once the store has refused for longer than it is worth waiting for."""

    def publish(self, work: _Work) -> None:
        """Take charge of a folder that the trainer has written."""
        self._waiting.append(work)
        self._ring()

    async def run(self) -> None:
        """Publish what comes, until cancelled."""
        while True:
            bell = self._bell
            await self._give_up_superseded()
            if not self._waiting:
                await bell.wait()
                continue
            self._is_busy = True
            work = self._waiting.popleft()
            try:
                await self._publish(work)
            finally:
                self._is_busy = False
                self._ring()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to publish."""
        return not self._waiting and not self._is_busy

    async def wait_until_idle(self) -> None:
        """Return once everything that was given is published, or given up."""
        while True:
            bell = self._bell
            if self.is_idle:
                return
            await bell.wait()

    async def _publish(self, work: _Work) -> None:
        async def act() -> None:
            await asyncio.to_thread(self._check_source, work.folder)
            match work:
                case CheckpointWritten():
                    await self._publish_checkpoint(work)
                case ExportWritten():
                    await self._publish_export(work)
                case ProfileWritten():
                    await self._publish_profile(work)

        what = _describe(work)

        try:
            await self._persistence.insist(what, act, self._warn_of_refusal)
            self._is_refusing = False
        except (*REFUSALS, ValueError, KeyError) as error:
            if isinstance(error, OSError) and not isinstance(error, Damaged):
                self.lost_store.set()  # where only room is missing, somebody may make some
            # Nothing that trying again would mend, or not for long now.
            self.problem = f"the {what} could not be stored: {error}"
            log.error("publisher.gave_up", what=what, error=str(error))
            await self._outbox.add([WarningRaised(code="NOT_STORED", message=self.problem)])
        await asyncio.to_thread(self._remove_source, work.folder)

    async def _publish_checkpoint(self, work: CheckpointWritten) -> None:
        local = Path(work.folder)
        manifest = await asyncio.to_thread(describe_folder, local, work.step, work.is_best, work.digests)
        stored = StoredCheckpoint.of(self._shelf.checkpoint_prefix, manifest)
        for file in manifest.files:
            blob = await self._store.put_file(f"{stored.folder}{file.path}", local / file.path)
            _verify(blob, file.digest, file.size_bytes)
        blob = await self._store.put_bytes(stored.manifest_key, manifest.content())
        if await stored.manifest(self._store) != manifest:
            raise Damaged(f"{stored.manifest_key} is not what was written")
        saved = CheckpointSaved(
            uri=stored.manifest_key,
            digest=blob.digest,
            step=work.step,
            is_best=work.is_best,
            size_bytes=manifest.size_bytes,
        )
        await self._outbox.add([saved])
        log.info("publisher.checkpoint_saved", step=work.step, bytes=manifest.size_bytes)
        await self._retire(stored, work.is_best)

    async def _publish_profile(self, work: ProfileWritten) -> None:
        local = Path(work.folder) / TRACE_FILE
        digest, size_bytes = await _of_file(digest_of, local)
        key = f"{self._shelf.profile_prefix}{work.first_step:012}-{digest.removeprefix('sha256:')[:16]}/{TRACE_FILE}"
        _verify(await self._store.put_file(key, local), digest, size_bytes)
        recorded = ProfileRecorded(
            first_step=work.first_step, num_steps=work.num_steps, uri=key, digest=digest, size_bytes=size_bytes
        )
        await self._outbox.add([recorded])

    async def _publish_export(self, work: ExportWritten) -> None:
        await self._outbox.add([PhaseChanged(phase="publishing")])
        local = Path(work.folder)
        export = ExportManifest.model_validate_json(await _of_file(Path.read_bytes, local / EXPORT_FILE))
        artifacts = []
        for exported in export.artifacts:
            key = f"{self._shelf.artifact_prefix}{exported.path}"
            digest, size_bytes = await _of_file(digest_of, local / exported.path)
            _verify(await self._store.put_file(key, local / exported.path), digest, size_bytes)
            artifacts.append(
                Artifact(path=exported.path, format=exported.format, digest=digest, size_bytes=size_bytes, key=key)
            )
        published = PublishedExport(
            signature=export.signature, artifacts=tuple(artifacts), metrics=export.metrics, lineage=export.lineage
        )
        key = f"{self._shelf.artifact_prefix}{PUBLISHED_EXPORT_FILE}"
        await self._store.put_bytes(key, published.model_dump_json().encode())
        await self._outbox.add([Exported(manifest_key=key)])
        self.has_published_export = True

    async def _retire(self, newest: StoredCheckpoint, is_best: bool) -> None:
        """Remove from the store what the newest checkpoint has made superfluous.  A failure leaves it for next time."""
        try:
            stored = await list_checkpoints(self._store, self._shelf.checkpoint_prefix)
            known = {it: self._complete[it] if it in self._complete else await self._examine(it) for it in stored}
            # Later steps than the newest are of a worker that was further, but left nothing that could be used.
            complete = {it: best for it, best in known.items() if best is not None and it.step <= newest.step}
            complete[newest] = is_best
            policy = self._policy
            kept = choose_kept(complete, keep_last=policy.keep_last, keep_best=policy.keep_best) | {newest}
            self._complete = {it: best for it, best in complete.items() if it in kept}
            for checkpoint in stored:
                if checkpoint not in kept:
                    await checkpoint.remove(self._store)
        except REFUSALS as error:
            log.warning("publisher.not_retired", error=str(error))

    async def _examine(self, stored: StoredCheckpoint) -> bool | None:
        """Whether a checkpoint that an earlier worker has left was a best one; None when it is no complete one."""
        try:
            return (await stored.manifest(self._store)).is_best
        except (KeyError, Damaged):
            return None

    async def _give_up_superseded(self) -> None:
        checkpoints = [work for work in self._waiting if isinstance(work, CheckpointWritten)]
        newest_best = next((work for work in reversed(checkpoints) if work.is_best), None)
        for work in checkpoints[:-1]:
            if work is not newest_best:
                self._waiting.remove(work)
                log.info("publisher.checkpoint_superseded", step=work.step)
                await asyncio.to_thread(self._remove_source, work.folder)

    def _check_source(self, folder: str) -> None:
        """Raises ValueError for a folder that is not there, or not the trainer's: trying again would not help."""
        path = Path(folder).resolve()
        if not path.is_relative_to(self._shelf.source.resolve()) or path == self._shelf.source.resolve():
            raise ValueError(f"{folder} lies outside of the trainer's own folder")
        if not path.is_dir():
            raise ValueError(f"{folder} is not there")

    def _remove_source(self, folder: str) -> None:
        try:
            self._check_source(folder)
        except ValueError:
            return
        shutil.rmtree(folder, ignore_errors=True)

    async def _warn_of_refusal(self, problem: str) -> None:
        """Warn once for each time that the store begins to refuse."""
        if not self._is_refusing:
            self._is_refusing = True
            message = f"the store refuses; it is tried again while the training goes on: {problem}"
            await self._outbox.add([WarningRaised(code="STORE_REFUSES", message=message)])

    def _ring(self) -> None:
        self._bell.set()
        self._bell = asyncio.Event()


async def _of_file(read: Callable[[Path], T], path: Path) -> T:
    """Read a local file.  Raises ValueError when it is not there: trying again would not help."""
    try:
        return await asyncio.to_thread(read, path)
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing") from None


def _describe(work: _Work) -> str:
    match work:
        case CheckpointWritten():
            return f"checkpoint of step {work.step}"
        case ExportWritten():
            return "export"
        case ProfileWritten():
            return f"trace of step {work.first_step}"


def _verify(blob: Blob, digest: str, size_bytes: int) -> None:
    if (blob.digest, blob.size_bytes) != (digest, size_bytes):
        raise Damaged(f"{blob.key} is not what was written")
