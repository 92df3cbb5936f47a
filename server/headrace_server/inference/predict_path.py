"""What one prediction passes through: from a name and arrays to what a model made of them.

resolve the name → check the inputs against the signature → borrow the version, loading it if need be → look whether the
answer is kept → take a permit in its batcher → a lane runs the batch → timing and provenance.  Belongs to the loop.
"""

import asyncio
import time
from collections.abc import Sequence
from functools import partial

from headrace_server.errors import HeadraceError, JobNotFound
from headrace_server.inference import ensembles
from headrace_server.inference.batch import Answer
from headrace_server.inference.cache.response_cache import ResponseCache
from headrace_server.inference.check import check
from headrace_server.inference.live.snapshots import Snapshots
from headrace_server.inference.meters import Meters, MetersByVersion
from headrace_server.inference.prediction import Prediction, Staleness, Timing
from headrace_server.inference.residency import Residency
from headrace_server.inference.resident import Resident
from headrace_server.models.registry import Registry
from headrace_server.models.snapshot import Snapshot
from headrace_server.models.version import ModelVersion
from headrace_server.names import ModelName, SnapshotName
from headrace_server.telemetry.metrics import Metrics
from headrace_server.tensors import Tensors


class PredictPath:
    """The way of every prediction of one engine."""

    def __init__(
        self,
        registry: Registry,
        residency: Residency,
        cache: ResponseCache,
        meters: MetersByVersion,
        metrics: Metrics,
        snapshots: Snapshots | None,
    ) -> None:
        """`snapshots` are the checkpoints of jobs that may answer; None: none do."""
        self._registry = registry
        self._residency = residency
        self._cache = cache
        self._meters = meters
        self._metrics = metrics
        self._snapshots = snapshots

    async def find(self, name: ModelName, deadline: float | None = None) -> ModelVersion:
        """The version, or checkpoint of a job, that a name means now.

        Raises ModelNotFound, JobNotFound, or what a checkpoint cannot be had for.
        """
        if not isinstance(name, SnapshotName):
            return await self._registry.resolve(name)
        if self._snapshots is None:
            raise JobNotFound(str(name.job))
        return await self._snapshots.find(name, deadline)

    async def predict(
        self,
        name: ModelName,
        inputs: Tensors,
        output_names: Sequence[str],
        deadline: float | None,
        priority: int,
        depth: int = 1,
    ) -> Prediction:
        """Run a model once; `depth` counts the ensembles that it is in, and itself.

        Raises as `Engine.predict`, but for Draining.
        """
        version = await self.find(name, deadline)
        inputs = version.signature.encode_text(inputs)
        meters = self._meters.of(version)
        asked_at = time.monotonic()
        try:
            if version.ensemble is not None:
                prediction = await self._predict_together(version, inputs, output_names, deadline, priority, depth)
                meters.answered(prediction.timing, _num_rows(version, inputs), time.monotonic() - asked_at)
                return prediction
            nbytes = await check(version, inputs, output_names)
            resident = self._residency.borrow_ready(version)
            if resident is None:
                resident = await self._residency.borrow(version, deadline=deadline, nbytes=nbytes)
        except BaseException as error:
            meters.ended(_outcome(error), time.monotonic() - asked_at)
            raise
        try:
            compute = partial(self._compute, resident, meters, inputs, nbytes, output_names, deadline, priority)
            if isinstance(version, Snapshot):
                return await compute()
            caching = (await self._registry.serving(version.model)).cache
            return await self._cache.answer(caching, version, resident.provenances, inputs, output_names, compute)
        finally:
            resident.give_back()

    # Inside.

    def _staleness(self, version: ModelVersion) -> Staleness | None:
        if not isinstance(version, Snapshot) or self._snapshots is None:
            return None
        staleness = self._snapshots.staleness(version)
        self._metrics.snapshot_lag_steps.observe(staleness.steps)
        self._metrics.snapshot_age_seconds.observe(staleness.age_seconds)
        return staleness

    async def _predict_together(
        self,
        version: ModelVersion,
        inputs: Tensors,
        output_names: Sequence[str],
        deadline: float | None,
        priority: int,
        depth: int,
    ) -> Prediction:
        ensembles.check_depth(version, depth)
        await check(version, inputs, output_names)
        ask = partial(self.predict, depth=depth + 1)
        return await ensembles.predict(version, inputs, output_names, deadline=deadline, priority=priority, ask=ask)

    def _prediction(
        self, resident: Resident, answer: Answer, output_names: Sequence[str], meters: Meters
    ) -> Prediction:
        outputs = answer.outputs
        respond_seconds = time.monotonic() - answer.finished_at
        meters.responded(respond_seconds)
        return Prediction(
            version=resident.version,
            outputs={name: outputs[name] for name in output_names} if output_names else outputs,
            timing=Timing(
                queue_seconds=answer.queue_seconds,
                assemble_seconds=answer.assemble_seconds,
                compute_seconds=answer.compute_seconds,
                respond_seconds=respond_seconds,
                batch_rows=answer.batch_rows,
                batch_calls=answer.batch_calls,
            ),
            provenance=resident.provenances[answer.variant],
            staleness=self._staleness(resident.version),
        )

    async def _compute(
        self,
        resident: Resident,
        meters: Meters,
        inputs: Tensors,
        nbytes: int,
        output_names: Sequence[str],
        deadline: float | None,
        priority: int,
    ) -> Prediction:
        answer = await _run(resident, inputs, nbytes, deadline, priority)
        return self._prediction(resident, answer, output_names, meters)


def _num_rows(version: ModelVersion, inputs: Tensors) -> int:
    """The rows of inputs that fit; everything is one row to a model that takes no rows."""
    if not version.signature.is_batchable:
        return 1
    return next((array.shape[0] for array in inputs.values()), 1)


def _outcome(error: BaseException) -> str:
    """What is counted for a call that no batcher has seen."""
    if isinstance(error, HeadraceError):
        return error.reason
    return "left" if isinstance(error, asyncio.CancelledError) else HeadraceError.reason


async def _run(resident: Resident, inputs: Tensors, nbytes: int, deadline: float | None, priority: int) -> Answer:
    """Let a call be computed.  From here on it is the batcher that counts it."""
    ticket = resident.batcher.submit(inputs, nbytes, priority=priority, deadline=deadline)
    try:
        answer: Answer = await ticket.future
        return answer
    except asyncio.CancelledError:
        resident.batcher.leave(ticket)
        raise
