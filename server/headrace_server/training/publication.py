"""Makes what a worker exported a version of a model.  Can be repeated at any time: a job has at most one version."""

import hashlib

from pydantic import ValidationError

from headrace_server.errors import InvalidModel
from headrace_server.models.version import ModelVersion, NewVersion
from headrace_server.names import ModelName
from headrace_server.storage.blob_store import BlobStore
from headrace_server.training.assignment import PublishedExport
from headrace_server.training.attempt import Attempt
from headrace_server.training.goods import Models
from headrace_server.training.job import Job
from headrace_server.training.workers import export_prefix


class Publisher:
    """Reads exports from the store and hands them to the registry."""

    def __init__(self, store: BlobStore, models: Models) -> None:
        self._store = store
        self._models = models

    async def find(self, job: Job) -> ModelVersion | None:
        """The version that a job has become, also when the job does not say so yet; None when it has become none."""
        return await self._models.find_origin(_origin(job))

    async def publish(self, job: Job, attempt: Attempt) -> ModelVersion:
        """Register what the attempt exported; the job's version, if it has one already.

        Raises InvalidModel when the export cannot be read, or names files outside its folder.
        """
        if (known := await self.find(job)) is not None:
            return known
        export = await self._read(job, attempt)
        digests = (job.best_checkpoint, job.latest_checkpoint)
        step = export.lineage.step
        start = job.spec.start_from
        lineage = export.lineage.model_copy(
            update={
                "training_job": str(job.name),
                "dataset_version": job.spec.dataset,
                "dataset_digest": job.spec.dataset_digest,
                "checkpoint_digest": next((found.digest for found in digests if found and found.step == step), ""),
                "spec": job.spec.model_dump(mode="json"),
                "seed": job.spec.recipe.seed,
                "deterministic": job.spec.recipe.deterministic,
                "start_from": start.name if start is not None else "",
                "start_from_digest": start.digest if start is not None else "",
            }
        )
        new = NewVersion(
            model=ModelName.parse(job.spec.model).model,
            signature=export.signature,
            artifacts=export.artifacts,
            metrics=export.metrics,
            lineage=lineage,
        )
        # The digest is the job's, not the export's: a second worker may export again after the first was registered.
        digest = hashlib.sha256(job.spec.model_dump_json().encode()).hexdigest()
        return await self._models.register(new, origin=_origin(job), origin_digest=f"sha256:{digest}")

    async def _read(self, job: Job, attempt: Attempt) -> PublishedExport:
        folder = export_prefix(job.id, attempt.number)
        if not attempt.manifest_key.startswith(folder):
            raise InvalidModel(f"the export's manifest {attempt.manifest_key!r} is not below {folder}")
        try:
            export = PublishedExport.model_validate_json(await self._store.get_bytes(attempt.manifest_key))
        except KeyError as error:
            raise InvalidModel(f"the export's manifest {attempt.manifest_key} is not in the store") from error
        except ValidationError as error:
            raise InvalidModel(f"the export's manifest cannot be read: {error.errors()[0]['msg']}") from error
        if not export.artifacts:
            raise InvalidModel("the export holds no file")
        stored = set(await self._store.list(folder))
        for artifact in export.artifacts:
            if artifact.key not in stored:
                raise InvalidModel(f"the exported file {artifact.key!r} is not in the store below {folder}")
        return export


def _origin(job: Job) -> str:
    # With its birth: the id of a job that was deleted may be given again, and must not find what the other became.
    return f"job:{job.id}:{job.created_at.isoformat()}"
