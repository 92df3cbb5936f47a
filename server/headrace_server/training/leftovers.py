"""Removes from the store what nobody needs of a job that is over: old checkpoints, and exports never registered.

While a job trains, its agent retires its checkpoints itself; a lost agent leaves some behind.  The newest checkpoint
and the best are kept.
"""

from headrace_server.names import ModelName
from headrace_server.storage.blob_store import BlobStore
from headrace_server.training.goods import Models
from headrace_server.training.job import Job
from headrace_server.training.workers import checkpoint_prefix


class Leftovers:
    """What is in the store below `checkpoints/{job}/` and `exports/{job}/`."""

    def __init__(self, store: BlobStore, models: Models) -> None:
        self._store = store
        self._models = models

    async def sweep(self, job: Job) -> None:
        """Remove everything of a job that is over except its newest and best checkpoints and what is registered."""
        checkpoints = (job.latest_checkpoint, job.best_checkpoint)
        await self._remove_except(job, {_unit(checkpoint.uri) for checkpoint in checkpoints if checkpoint is not None})

    async def remove(self, job: Job) -> None:
        """Remove everything of a job that is over except what is registered."""
        await self._remove_except(job, set())

    async def _remove_except(self, job: Job, kept: set[str]) -> None:
        if job.model_version:
            version = await self._models.resolve(ModelName.parse(job.model_version))
            kept = kept | {_unit(artifact.key) for artifact in version.artifacts}
        for prefix in (checkpoint_prefix(job.id), f"exports/{job.id}/"):
            for unit in sorted({_unit(key) for key in await self._store.list(prefix)} - kept):
                await self._store.delete_all(unit)


def _unit(key: str) -> str:
    """The folder of one checkpoint, or of one worker's export: the first three parts of a key below it."""
    return "/".join(key.split("/")[:3]) + "/"
