"""Shows jobs and their checkpoints to whoever serves them.  Reads only; holds nothing that a training waits for."""

import hashlib
from datetime import UTC, datetime

from sqlalchemy import Connection, select

from headrace_server.database.database import Database
from headrace_server.database.tables import journal_entries
from headrace_server.errors import JobNotFound
from headrace_server.names import DatasetName, JobName
from headrace_server.storage.blob_store import Blob, BlobStore
from headrace_server.trainers.live_job import Content, KeptCheckpoint, LiveJob
from headrace_server.training import rows
from headrace_server.training.checkpoints import MANIFEST, StoredCheckpoint
from headrace_server.training.goods import Datasets
from headrace_server.training.workers import checkpoint_prefix


class LiveJobs:
    """All jobs, as `inference.live` asks for them."""

    def __init__(self, database: Database, store: BlobStore, datasets: Datasets) -> None:
        self._database = database
        self._store = store
        self._datasets = datasets

    async def look(self, name: JobName) -> LiveJob:
        """A job as it is now.  Raises JobNotFound."""
        async with self._database.read() as connection:
            stored = await connection.run_sync(rows.fetch, name.job)
        if stored is None:
            raise JobNotFound(str(name))
        job = stored.job
        return LiveJob(
            name=name,
            state=job.state,
            is_over=job.state.is_terminal,
            ended_at=job.ended_at,
            latest_step=job.latest_step.step if job.latest_step is not None else 0,
            latest=job.latest_checkpoint.uri if job.latest_checkpoint is not None else None,
            best=job.best_checkpoint.uri if job.best_checkpoint is not None else None,
            model=job.spec.model,
            trainer=job.spec.trainer,
            parameters=job.spec.parameters,
            recipe=job.spec.recipe,
            dataset=job.spec.dataset,
            dataset_digest=job.spec.dataset_digest,
        )

    async def kept(self, name: JobName) -> dict[int, str]:
        """The steps of all complete checkpoints with the keys of their manifests, the last step first."""
        found = {}
        for key in reversed(await self._store.list(checkpoint_prefix(name.job))):
            checkpoint = StoredCheckpoint.parse(key)
            if checkpoint is not None and key.endswith(f"/{MANIFEST}"):
                found[checkpoint.step] = key
        return found

    async def open(self, name: JobName, manifest_key: str) -> KeptCheckpoint:
        """What one checkpoint consists of.  Raises KeyError when it is not kept any more, OSError when damaged."""
        stored = StoredCheckpoint.parse(manifest_key)
        assert stored is not None, "a job says where its checkpoints are"
        manifest = await stored.manifest(self._store)
        digest = hashlib.sha256(await self._store.get_bytes(manifest_key)).hexdigest()
        async with self._database.read() as connection:
            saved_at = await connection.run_sync(_saved_at, name.job, manifest_key)
        return KeptCheckpoint(
            step=manifest.step,
            digest=f"sha256:{digest}",
            saved_at=saved_at or datetime.now(UTC),
            files={
                file.path: Blob(f"{stored.folder}{file.path}", file.size_bytes, file.digest) for file in manifest.files
            },
        )

    async def content(self, job: LiveJob) -> Content:
        """The data that a job learns from.  Raises DatasetNotFound."""
        version = await self._datasets.version(DatasetName.parse(job.dataset))
        return Content(version.blob_key, version.format, version.digest)


def _saved_at(connection: Connection, job: str, manifest_key: str) -> datetime | None:
    """When a checkpoint was announced; None where it is not yet, or the history no longer goes back so far."""
    query = (
        select(journal_entries.c.time)
        .where(
            journal_entries.c.job == job,
            journal_entries.c.stream == "events",
            journal_entries.c.kind == "checkpoint_saved",
            journal_entries.c.body.contains(manifest_key, autoescape=True),
        )
        .order_by(journal_entries.c.sequence.desc())
        .limit(1)
    )
    found: datetime | None = connection.execute(query).scalar_one_or_none()
    return found
