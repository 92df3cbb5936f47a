"""Turns what the last worker of a job has left into a version of its model, or says why it never will be one.

Knows nothing of workers; whoever calls sees to it that nothing else decides about the job meanwhile.
"""

from headrace_server.errors import DatasetNotFound, Invalid
from headrace_server.training.amendment import Amendment
from headrace_server.training.conclusion import STORE_LOST, conclude_refusal, conclude_success
from headrace_server.training.job import Failure, Job
from headrace_server.training.jobs import JobStore
from headrace_server.training.publication import Publisher
from headrace_server.training.rows import StoredJob
from headrace_server.training.setbacks import Setbacks


class Result:
    """What one job is to become."""

    def __init__(
        self, job: str, jobs: JobStore, publisher: Publisher, setbacks: Setbacks, store_patience_seconds: float
    ) -> None:
        """`setbacks` are what went wrong with the job of late: they say for how long the store has been away."""
        self._job = job
        self._jobs = jobs
        self._publisher = publisher
        self._setbacks = setbacks
        self._store_patience_seconds = store_patience_seconds

    async def settle(self) -> bool:
        """End a job as SUCCEEDED whose result is registered already, which a server may not have lived to say.

        Returns whether that was so.
        """
        stored = await self._jobs.get(self._job)
        if not stored.has_result or (version := await self._publisher.find(stored.job)) is None:
            return False
        await self._jobs.change(self._job, lambda it: conclude_success(it, version.name))
        return True

    async def register(self, stored: StoredJob) -> Job:
        """Register what the job's newest worker exported, and end the job.

        Raises OSError while the store is away, for as long as it is worth asking again.
        """
        try:
            version = (await self._publisher.publish(stored.job, stored.attempt)).name
        except Invalid as error:
            return await self.refuse("TRAINER_FAILED", error)
        except OSError as error:
            if self._setbacks.lasting_seconds < self._store_patience_seconds:
                raise
            return await self._fail(
                STORE_LOST, Failure(reason=STORE_LOST, message=f"StoreLost: the result could not be read: {error}")
            )
        return await self._jobs.change(self._job, lambda it: conclude_success(it, version))

    async def refuse(self, reason: str, error: DatasetNotFound | Invalid) -> Job:
        """End a job that cannot go on for a reason of its own."""
        return await self._fail(reason, Failure(reason=error.reason, message=str(error), metadata=dict(error.metadata)))

    async def fail_internally(self, fault: str) -> Job:
        """End a job because of a fault of our own, whose id finds it in the log."""
        failure = Failure(reason="INTERNAL", message=f"the server failed; id {fault}", metadata={"error_id": fault})
        return await self._fail("INTERNAL", failure)

    async def _fail(self, reason: str, failure: Failure) -> Job:
        def conclude(amendment: Amendment) -> None:
            conclude_refusal(amendment, reason, failure)

        return await self._jobs.change(self._job, conclude)
