"""What the reports of a worker mean for its job: which entries they become, and which states they lead to.

Plain functions on an amendment.  Each report counts once, by its number, over however many connections it comes.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import assert_never

import structlog

from headrace_server.telemetry.metrics import Metrics
from headrace_server.trainers.reports import EvaluationCompleted, PhaseChanged, StepCompleted, WarningRaised
from headrace_server.training.amendment import Amendment
from headrace_server.training.events import CheckpointSaved, LogLine, ProfileRecorded
from headrace_server.training.session import Exported, TrainerEnded, WorkerReport
from headrace_server.training.states import JobState

LONGEST_LINE = 8192
MOST_LAST_LINES = 50
LONGEST_LAST_LINE = 500
LONGEST_MESSAGE = 2000

log = structlog.get_logger()


def record(amendment: Amendment, attempt: int, reports: Sequence[WorkerReport]) -> int:
    """Take in the reports of one attempt and return the number of the last one that counts as kept.

    Raises WorkerFenced when the attempt no longer has the job.
    """
    amendment.check_worker(attempt)
    acknowledged = amendment.attempt.acknowledged
    for report in reports:
        if report.number <= acknowledged:
            continue
        if report.number > acknowledged + 1:
            log.error(
                "training.reports_missing", job=amendment.job.id, attempt=attempt, after=acknowledged, got=report.number
            )
            break
        if amendment.attempt.ended is None:
            _take(amendment, report)
        acknowledged = report.number
    if acknowledged > amendment.attempt.acknowledged:
        amendment.note_worker(acknowledged=acknowledged)
    return acknowledged


def observe_lag(reports: Sequence[WorkerReport], metrics: Metrics) -> None:
    """Measure how long reports took from the worker until they were durable, which they are now."""
    now = datetime.now(UTC)
    for report in reports:
        metrics.progress_lag_seconds.observe(max(0.0, (now - report.time).total_seconds()))


def _take(amendment: Amendment, report: WorkerReport) -> None:
    content = report.content
    match content:
        case StepCompleted():
            _take_step(amendment, report, content)
        case EvaluationCompleted():
            _take_evaluation(amendment, report, content)
        case WarningRaised() | ProfileRecorded():
            amendment.append(content, report.time)
        case CheckpointSaved():
            _take_checkpoint(amendment, report, content)
        case PhaseChanged():
            amendment.append(content, report.time)
            _follow_phase(amendment, content.phase)
        case LogLine():
            line = content if len(content.text) <= LONGEST_LINE else _cut(content)
            amendment.write_line(line, report.time)
        case Exported():
            amendment.note_worker(manifest_key=content.manifest_key)
        case TrainerEnded():
            amendment.note_worker(ended=_shorten(content))
        case _:
            assert_never(content)


def _take_step(amendment: Amendment, report: WorkerReport, step: StepCompleted) -> None:
    latest = amendment.job.latest_step
    if latest is not None and step.step <= latest.step:
        return  # done again after a restart from a checkpoint; the history has it already
    _begin_running(amendment)
    amendment.append(step, report.time)
    amendment.note_step(latest_step=step)


def _take_evaluation(amendment: Amendment, report: WorkerReport, evaluation: EvaluationCompleted) -> None:
    if evaluation.step <= amendment.attempt.evaluated_step:
        return  # as with steps; a training that is continued comes to the same figures
    amendment.append(evaluation, report.time)
    amendment.note_worker(evaluated_step=evaluation.step)


def _take_checkpoint(amendment: Amendment, report: WorkerReport, checkpoint: CheckpointSaved) -> None:
    latest = amendment.job.latest_checkpoint
    if latest is None or checkpoint.uri != latest.uri:  # the same content has the same place
        amendment.append(checkpoint, report.time)
    amendment.note_checkpoint(checkpoint)


def _follow_phase(amendment: Amendment, phase: str) -> None:
    if phase == "training":
        _begin_running(amendment)
    elif phase == "exporting" and not amendment.job.state.is_ending:
        begin_finalizing(amendment)


def _begin_running(amendment: Amendment) -> None:
    if amendment.job.state is JobState.PREPARING:
        amendment.move(JobState.RUNNING, "TRAINING_STARTED")


def begin_finalizing(amendment: Amendment) -> None:
    """Move a job that trains on to FINALIZING, if it is not there yet."""
    _begin_running(amendment)  # a worker may resume from the last checkpoint, with nothing left to train
    if amendment.job.state in (JobState.RUNNING, JobState.PAUSING):
        amendment.move(JobState.FINALIZING, "EXPORT_STARTED")


def _cut(line: LogLine) -> LogLine:
    return line.model_copy(update={"text": line.text[:LONGEST_LINE]})


def _shorten(ended: TrainerEnded) -> TrainerEnded:
    lines = tuple(line[:LONGEST_LAST_LINE] for line in ended.last_lines[-MOST_LAST_LINES:])
    return replace(ended, last_lines=lines, message=ended.message[:LONGEST_MESSAGE])
