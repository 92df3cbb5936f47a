"""Tells sinks of a job in their words: what its history says, and what it was asked to do.

Plain functions on values.
"""

from collections.abc import Iterator
from typing import assert_never

from headrace_server.trainers.reports import EvaluationCompleted, PhaseChanged, StepCompleted, WarningRaised
from headrace_server.training.events import (
    CheckpointSaved,
    Event,
    ModelRegistered,
    ProfileRecorded,
    StateChanged,
)
from headrace_server.training.job import Job
from headrace_server.training.paths import by_path
from headrace_server.training.sinks.sink import Entry, Figures, Note, Run, StateNote


def describe_run(job: Job) -> Run:
    """What never changes about a job."""
    return Run(
        id=job.id,
        created_at=job.created_at,
        model=job.spec.model,
        dataset=job.spec.dataset,
        trainer=job.spec.trainer,
        parameters=by_path(job.spec.model_dump(mode="json")),
        labels=job.labels,
    )


def describe_event(event: Event) -> Entry:
    """One entry of a history."""
    sequence, time, happening = event.sequence, event.time, event.happening
    match happening:
        case StepCompleted():
            return Figures(sequence, time, happening.step, dict(_step_values(happening)))
        case EvaluationCompleted():
            values = {f"evaluation/{name}": value for name, value in happening.metrics.items()}
            return Figures(sequence, time, happening.step, values)
        case StateChanged():
            state = happening.to_state
            return StateNote(sequence, time, state.value, happening.reason, happening.message, state.is_terminal)
        case CheckpointSaved():
            kind = "best_checkpoint" if happening.is_best else "checkpoint"
            return Note(sequence, time, kind, f"step {happening.step}, {happening.digest}")
        case ModelRegistered():
            return Note(sequence, time, "model_version", happening.model_version)
        case PhaseChanged():
            return Note(sequence, time, "phase", happening.phase)
        case WarningRaised():
            return Note(sequence, time, "warning", f"{happening.code}: {happening.message}")
        case ProfileRecorded():
            return Note(sequence, time, "profile", happening.uri)
        case _:
            assert_never(happening)


def _step_values(step: StepCompleted) -> Iterator[tuple[str, float]]:
    yield "train/loss", step.loss
    yield "train/learning_rate", step.learning_rate
    yield "train/samples_per_second", step.samples_per_second
    yield "train/epoch", float(step.epoch)
    for name, value in step.metrics.items():
        yield f"train/{name}", value
    if step.gradient_norm is not None:
        yield "train/gradient_norm", step.gradient_norm
    if step.model_flops_utilization is not None:
        yield "train/model_flops_utilization", step.model_flops_utilization
    if step.skipped_steps:
        yield "train/skipped_steps", float(step.skipped_steps)
    for part, seconds in step.step_seconds.items():
        yield f"time/{part}_seconds", seconds
