"""Removes from the store what nobody needs of a job that is over: old checkpoints, and exports never registered.

While a job trains, its agent retires its checkpoints itself; a lost agent leaves some behind.
"""

import contextlib

from headrace_server.names import ModelName
from headrace_server.storage.blob_store import BlobStore
from headrace_server.training.checkpoints import Damaged, StoredCheckpoint, choose_kept, list_checkpoints
from headrace_server.training.goods import Models
from headrace_server.training.job import Job
from headrace_server.training.workers import checkpoint_prefix, profile_prefix


class Leftovers:
    """What is in the store below `checkpoints/{job}/` and `exports/{job}/`."""

    def __init__(self, store: BlobStore, models: Models) -> None:
        self._store = store
        self._models = models

    async def sweep(self, job: Job) -> None:
        """Remove everything of a job that is over except the checkpoints of its policy and what is registered."""
        announced = [it for it in (job.latest_checkpoint, job.best_checkpoint) if it is not None]
        kept = {_unit(checkpoint.uri) for checkpoint in announced}
        if job.latest_checkpoint is not None:
            policy = job.spec.recipe.checkpoints
            complete = await self._complete(job.id, job.latest_checkpoint.step)
            chosen = choose_kept(complete, keep_last=policy.keep_last, keep_best=policy.keep_best)
            kept |= {checkpoint.folder for checkpoint in chosen}
        await self._remove_except(job, kept)

    async def remove(self, job: Job) -> None:
        """Remove everything of a job that is over except what is registered."""
        await self._remove_except(job, set())
        await self._store.delete_all(profile_prefix(job.id))

    async def _complete(self, job: str, last_step: int) -> dict[StoredCheckpoint, bool]:
        """The complete checkpoints up to a step, and whether each was the best when it was evaluated."""
        complete = {}
        for stored in await list_checkpoints(self._store, checkpoint_prefix(job)):
            if stored.step <= last_step:
                with contextlib.suppress(KeyError, Damaged):
                    complete[stored] = (await stored.manifest(self._store)).is_best
        return complete

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
