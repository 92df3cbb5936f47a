"""Finds the weights that a training is to begin with, once, when it is admitted.

What is found is named by its place and its digest: from then on nothing that is registered, trained or renamed changes
what the training begins with.
"""

import re

from headrace_server.errors import InvalidName, NotFound, Violation
from headrace_server.models.version import ArtifactFormat
from headrace_server.names import JobName, ModelName
from headrace_server.storage.blob_store import BlobStore
from headrace_server.training.checkpoints import Damaged, StoredCheckpoint
from headrace_server.training.goods import Models
from headrace_server.training.jobs import JobStore
from headrace_server.training.spec import StartPoint

WEIGHTS, BEST_WEIGHTS = "weights.safetensors", "best.safetensors"
_JOB = re.compile(r"(trainingJobs/[^@]*)(?:@(latest|best))?")


class StartPoints:
    """Weights of model versions and of checkpoints."""

    def __init__(self, models: Models, jobs: JobStore, store: BlobStore) -> None:
        self._models = models
        self._jobs = jobs
        self._store = store

    async def find(self, text: str, field: str) -> StartPoint | Violation:
        """The weights that `text` names now, or why there are none."""
        try:
            if text.startswith("models/"):
                return await self._of_version(ModelName.parse(text, field), field)
            if (match := _JOB.fullmatch(text)) is not None:
                return await self._of_job(JobName.parse(match[1], field), field, is_best=match[2] == "best")
        except InvalidName as error:
            return error.violations[0]
        except (NotFound, Damaged) as error:
            return Violation(field, str(error))
        return Violation(field, f"{text[:200]!r} is neither models/… nor trainingJobs/…")

    async def _of_version(self, name: ModelName, field: str) -> StartPoint | Violation:
        version = await self._models.resolve(name)
        weights = version.artifact(ArtifactFormat.SAFETENSORS)
        if weights is None:
            return Violation(field, f"{version.name} holds no weights: it was not trained here")
        return StartPoint(name=str(version.name), key=weights.key, digest=weights.digest)

    async def _of_job(self, name: JobName, field: str, *, is_best: bool) -> StartPoint | Violation:
        job = (await self._jobs.get(name.job)).job
        checkpoint = job.best_checkpoint if is_best else job.latest_checkpoint
        stored = None if checkpoint is None else StoredCheckpoint.parse(checkpoint.uri)
        if stored is None:
            return Violation(field, f"{name} has no checkpoint yet")
        try:
            files = {file.path: file for file in (await stored.manifest(self._store)).files}
        except KeyError:
            return Violation(field, f"the checkpoint of step {stored.step} of {name} is no longer in the store")
        found = (is_best and files.get(BEST_WEIGHTS)) or files.get(WEIGHTS)
        if not found:
            return Violation(field, f"the checkpoint of step {stored.step} of {name} holds no weights")
        which = "best" if is_best else "latest"
        return StartPoint(name=f"{name}@{which}", key=f"{stored.folder}{found.path}", digest=found.digest)
