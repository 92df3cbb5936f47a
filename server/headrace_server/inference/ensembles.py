"""Answers with several models: asks them at the same time, and makes one answer of theirs.

Each member is asked like any model, so its rows are computed together with everybody else's.  All have the caller's
deadline; when one fails the others are left, and its error, which says whose it is, is the ensemble's.  Belongs to the
event loop; large answers are combined in a thread.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, assert_never

import numpy as np

from headrace_server.errors import HeadraceError, InvalidTensor, ModelFailed, of_member
from headrace_server.inference.prediction import MemberAnswer, ModelStatus, Prediction, Provenance, Readiness, Timing
from headrace_server.models.ensemble import DEEPEST, Chain, Ensemble, Mean, MemberOutput, Vote, order_of
from headrace_server.models.version import ModelVersion
from headrace_server.names import ModelName
from headrace_server.precision import Precision
from headrace_server.tensors import Array, Tensors

INLINE_BYTES = 64 << 10
"""Answers up to this size are combined on the loop: that is faster than going to a thread and back."""
BACKEND = "ensemble"
_WORST_FIRST = (Readiness.FAILED, Readiness.UNLOADED, Readiness.LOADING, Readiness.READY)


class Ask(Protocol):
    """Runs a model once, as `Engine.predict` does."""

    async def __call__(
        self, name: ModelName, inputs: Tensors, output_names: Sequence[str], deadline: float | None, priority: int
    ) -> Prediction:
        """Raises whatever a prediction raises."""
        ...


async def predict(
    version: ModelVersion,
    inputs: Tensors,
    output_names: Sequence[str],
    *,
    deadline: float | None,
    priority: int,
    ask: Ask,
) -> Prediction:
    """Run an ensemble once on inputs that fit its signature; `deadline` is on time.monotonic().

    Raises the error of the first member that fails, with its name in the metadata, or ModelFailed when their answers
    cannot be combined.
    """
    ensemble = version.ensemble
    assert ensemble is not None
    began_at = time.monotonic()
    names = tuple(output_names) or tuple(spec.name for spec in version.signature.outputs)
    wanted = _wanted(ensemble, names)
    answers = await _ask_all(ensemble, inputs, wanted, deadline, priority, ask)
    answered_at = time.monotonic()
    size = sum(array.nbytes for answer in answers.values() for array in answer.outputs.values())
    if size > INLINE_BYTES and not isinstance(ensemble.combination, Chain):
        outputs = await asyncio.to_thread(_combine, version, ensemble, answers, names)
    else:
        outputs = _combine(version, ensemble, answers, names)
    members = tuple(_told(member.name, answers[member.name]) for member in ensemble.members)
    return Prediction(
        version=version,
        outputs=outputs,
        timing=Timing(
            queue_seconds=0.0,
            assemble_seconds=0.0,
            compute_seconds=answered_at - began_at,
            respond_seconds=time.monotonic() - answered_at,
            batch_rows=max(member.timing.batch_rows for member in members),
            batch_calls=max(member.timing.batch_calls for member in members),
        ),
        provenance=_provenance(version, members),
        members=members,
    )


async def members_of(
    version: ModelVersion, resolve: Callable[[ModelName], Awaitable[ModelVersion]], depth: int = 1
) -> list[ModelVersion]:
    """The versions that an ensemble asks in the end, as names mean now.  Raises ModelNotFound, ModelFailed."""
    if version.ensemble is None:
        return [version]
    check_depth(version, depth)
    found: list[ModelVersion] = []
    for member in version.ensemble.members:
        found += await members_of(await resolve(ModelName.parse(member.model)), resolve, depth + 1)
    return found


def check_depth(version: ModelVersion, depth: int) -> None:
    """Raise ModelFailed for the ensemble that is one too deep, which in a circle there is."""
    if depth > DEEPEST:
        raise ModelFailed(str(version.name), f"ensembles are in each other more than {DEEPEST} deep")


def status_of(version: ModelVersion, members: Sequence[ModelStatus]) -> ModelStatus:
    """How an ensemble is: as its worst member."""
    worst = min(members, key=lambda status: _WORST_FIRST.index(status.readiness))
    calls = sum(status.calls_in_flight for status in members)
    return ModelStatus(version, worst.readiness, worst.failure, calls, BACKEND)


async def _ask_all(
    ensemble: Ensemble,
    inputs: Tensors,
    wanted: dict[str, tuple[str, ...]],
    deadline: float | None,
    priority: int,
    ask: Ask,
) -> dict[str, Prediction]:
    """Every member's answer.  In a chain a member begins when those that feed it have answered."""
    tasks: dict[str, asyncio.Task[Prediction]] = {}

    async def run(name: str) -> Prediction:
        member = ensemble.member(name)
        own = await _inputs_of(ensemble, name, inputs, tasks)
        try:
            return await ask(ModelName.parse(member.model), own, wanted[name], deadline, priority)
        except InvalidTensor as error:  # the caller's inputs fit: it is what the name means now that does not
            problem = f"{member.model} does not fit the ensemble: {error}"
            raise of_member(ModelFailed(member.model, problem), name) from error
        except HeadraceError as error:
            raise of_member(error, name) from error

    is_chain = isinstance(ensemble.combination, Chain)
    order = order_of(ensemble) if is_chain else [member.name for member in ensemble.members]
    try:
        async with asyncio.TaskGroup() as group:
            for name in order:
                tasks[name] = group.create_task(run(name))
    except BaseExceptionGroup as errors:
        raise _first(errors) from None
    return {name: task.result() for name, task in tasks.items()}


async def _inputs_of(
    ensemble: Ensemble, member: str, inputs: Tensors, tasks: dict[str, asyncio.Task[Prediction]]
) -> Tensors:
    if not isinstance(ensemble.combination, Chain):
        return inputs
    own: dict[str, Array] = {}
    for wire in ensemble.combination.inputs:
        if wire.member != member:
            continue
        if isinstance(wire.source, MemberOutput):
            own[wire.input] = (await tasks[wire.source.member]).outputs[wire.source.output]
        else:
            own[wire.input] = inputs[wire.source]
    return own


def _wanted(ensemble: Ensemble, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The outputs that each member is asked for; a member of a chain that feeds nobody is asked all the same."""
    if not isinstance(ensemble.combination, Chain):
        return {member.name: tuple(names) for member in ensemble.members}
    chain = ensemble.combination
    used = [wire.source for wire in chain.inputs if isinstance(wire.source, MemberOutput)]
    used += [output.source for output in chain.outputs if output.name in names]
    return {
        member.name: tuple(dict.fromkeys(source.output for source in used if source.member == member.name))
        for member in ensemble.members
    }


def _combine(
    version: ModelVersion, ensemble: Ensemble, answers: dict[str, Prediction], names: Sequence[str]
) -> dict[str, Array]:
    match ensemble.combination:
        case Chain() as chain:
            sources = {output.name: output.source for output in chain.outputs}
            return {name: answers[sources[name].member].outputs[sources[name].output] for name in names}
        case Mean() | Vote():
            weights = [member.weight for member in ensemble.members]
            combine = mean if isinstance(ensemble.combination, Mean) else vote
            outputs = {}
            for name in names:
                arrays = [answers[member.name].outputs[name] for member in ensemble.members]
                if len(shapes := {array.shape for array in arrays}) > 1:
                    told = " and ".join(str(list(shape)) for shape in sorted(shapes))
                    raise ModelFailed(str(version.name), f"its members answer {name!r} in different shapes: {told}")
                outputs[name] = combine(arrays, weights)
            return outputs
    assert_never(ensemble.combination)


def mean(arrays: Sequence[Array], weights: Sequence[float]) -> Array:
    """The weighted mean of floating-point arrays of one shape and type, summed in float64."""
    total = sum(weights)
    summed = np.zeros(arrays[0].shape, np.float64)
    for array, weight in zip(arrays, weights, strict=True):
        summed += (weight / total) * array.astype(np.float64)
    result: Array = summed.astype(arrays[0].dtype)
    return result


def vote(arrays: Sequence[Array], weights: Sequence[float]) -> Array:
    """For each element what has most weight behind it; of several the one of the earliest array."""
    support = np.stack([
        sum((weight * (array == other) for other, weight in zip(arrays, weights, strict=True)), np.float64(0))
        for array in arrays
    ])  # fmt: skip
    winners = np.argmax(support, axis=0)  # the first of equals
    result = arrays[0].copy()
    for index, array in enumerate(arrays[1:], 1):
        np.copyto(result, array, where=winners == index)
    return result


def _told(name: str, answer: Prediction) -> MemberAnswer:
    return MemberAnswer(name, answer.version, answer.timing, answer.provenance, answer.members)


def _provenance(version: ModelVersion, members: Sequence[MemberAnswer]) -> Provenance:
    digests = "\n".join(f"{member.name} {member.provenance.artifact_digest}" for member in members)
    precisions = {member.provenance.precision for member in members}
    return Provenance(
        artifact_digest=f"sha256:{hashlib.sha256(digests.encode()).hexdigest()}",
        backend=BACKEND,
        precision=precisions.pop() if len(precisions) == 1 else Precision.AUTO,
        device=", ".join(sorted({member.provenance.device for member in members})),
        training_job=version.lineage.training_job,
    )


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of the member that failed; others may have failed for want of its answer."""
    flat = [_first(error) if isinstance(error, BaseExceptionGroup) else error for error in errors.exceptions]
    return next((error for error in flat if isinstance(error, HeadraceError)), flat[0])
