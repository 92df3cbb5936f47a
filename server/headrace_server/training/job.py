"""A training job as the house sees it: a value that is read from the database and never changed in place."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from headrace_server.names import JobName
from headrace_server.trainers.reports import StepCompleted
from headrace_server.training.events import CheckpointSaved
from headrace_server.training.spec import TrainingSpec
from headrace_server.training.states import JobState


class Failure(BaseModel):
    """Why a job failed, with the evidence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str
    """A name of the contract's ErrorReason: TRAINER_FAILED, WORKER_LOST, INVALID_DATASET…"""
    message: str
    metadata: dict[str, str] = {}
    """For example exit_code, signal, out_of_memory, last_lines."""


class Job(BaseModel):
    """One training: what was asked for, how far it is, and how it ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    spec: TrainingSpec
    labels: dict[str, str] = {}
    request_id: str = ""
    state: JobState
    state_message: str = ""
    latest_step: StepCompleted | None = None
    latest_sequence: int = 0
    oldest_sequence: int = 1
    latest_checkpoint: CheckpointSaved | None = None
    best_checkpoint: CheckpointSaved | None = None
    failure: Failure | None = None
    model_version: str = ""
    attempt: int = 0
    """The number of workers it has had; the newest one's number."""
    restarts: int = 0
    """Workers that were lost; leaving with the server does not count."""
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def name(self) -> JobName:
        """`trainingJobs/{job}`."""
        return JobName(self.id)
