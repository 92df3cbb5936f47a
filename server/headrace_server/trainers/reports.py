"""What a trainer process and its agent say to each other: one JSON object a line.  Knows no torch.

Reports go up on the file descriptor that the job file names, commands come down on standard input.  Standard output
and error carry only text for people.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Line(BaseModel):
    # A loss may be NaN: JSON has no word for it, and null could not be read back.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class StepCompleted(_Line):
    """Training steps were done; figures cover the time since the report before.

    Steps go on from the checkpoint that a process continues from.  A process that was killed may have reported steps
    after its last checkpoint: they are done and reported again, and whoever keeps the history leaves them out.
    """

    kind: Literal["step_completed"] = "step_completed"
    step: int
    """Optimizer steps so far, counted from 1."""
    epoch: int
    """Counted from 1."""
    fraction: float
    loss: float
    metrics: dict[str, float] = {}
    learning_rate: float
    samples_per_second: float
    step_seconds: dict[str, float] = {}
    """Mean seconds of one step by part: "data", "transfer", "forward", "backward", "optimizer", "checkpoint", "yield".
    Parts that took no time are left out."""
    remaining_seconds: float | None = None
    model_flops_utilization: float | None = None
    """The share, 0 to 1, of the device's arithmetic that the network's own operations used; None where not known."""
    gradient_norm: float | None = None
    """The joint 2-norm of the last step's gradients before clipping; None where nothing needed it."""
    skipped_steps: int = 0
    """Steps that were left out so far because their loss or gradient was not finite."""


class EvaluationCompleted(_Line):
    """Held-out rows were evaluated."""

    kind: Literal["evaluation_completed"] = "evaluation_completed"
    step: int
    epoch: int
    metrics: dict[str, float]
    is_best: bool
    num_rows: int


class PhaseChanged(_Line):
    """The worker turned to another activity; the contract lists the phases."""

    kind: Literal["phase_changed"] = "phase_changed"
    phase: str


class WarningRaised(_Line):
    """Something deserves attention; the job goes on."""

    kind: Literal["warning_raised"] = "warning_raised"
    code: str
    """UPPER_SNAKE_CASE."""
    message: str


class CheckpointWritten(_Line):
    """A complete checkpoint lies in a local folder; the agent publishes it, then removes the folder."""

    kind: Literal["checkpoint_written"] = "checkpoint_written"
    folder: str
    step: int
    is_best: bool
    digests: dict[str, str] = {}
    """Of files as they were in memory, as "sha256:" and hex: what is stored must be that."""


class ExportWritten(_Line):
    """The exported programs lie in a local folder with `export.json` (an ExportManifest)."""

    kind: Literal["export_written"] = "export_written"
    folder: str


class ProfileWritten(_Line):
    """A trace of some steps lies in a local folder; the agent publishes it, then removes the folder."""

    kind: Literal["profile_written"] = "profile_written"
    folder: str
    """Holds `trace.json.gz`, as torch.profiler writes it for chrome://tracing and Perfetto."""
    first_step: int
    num_steps: int


class Ready(_Line):
    """A trainer that was started ahead of its job has loaded everything, and waits for TakeCommand."""

    kind: Literal["ready"] = "ready"


class Failed(_Line):
    """The trainer cannot go on, and trying again would not help.  Its last report."""

    kind: Literal["failed"] = "failed"
    error: str
    """The name of the error's type."""
    message: str


class Stopped(_Line):
    """The trainer has stopped as it was told to; its last checkpoint was reported before.  Its last report."""

    kind: Literal["stopped"] = "stopped"


class Finished(_Line):
    """Everything is done and reported.  Its last report."""

    kind: Literal["finished"] = "finished"


TrainerReport = Annotated[
    Ready
    | StepCompleted
    | EvaluationCompleted
    | PhaseChanged
    | WarningRaised
    | CheckpointWritten
    | ExportWritten
    | ProfileWritten
    | Failed
    | Stopped
    | Finished,
    Field(discriminator="kind"),
]
TRAINER_REPORT: TypeAdapter[TrainerReport] = TypeAdapter(TrainerReport)


class StopCommand(_Line):
    """Finish the step, write a checkpoint, say Stopped, exit."""

    command: Literal["stop"] = "stop"


class ProfileCommand(_Line):
    """Record what the next steps do, write the trace, say ProfileWritten, and go on."""

    command: Literal["profile"] = "profile"
    num_steps: int = Field(ge=1, le=1000)


class TakeCommand(_Line):
    """Do the job that a file describes; only to a trainer that waits for one."""

    command: Literal["take"] = "take"
    job_file: str
    environment: dict[str, str] = {}
    """Variables to set first."""


TrainerCommand = Annotated[StopCommand | ProfileCommand | TakeCommand, Field(discriminator="command")]
TRAINER_COMMAND: TypeAdapter[TrainerCommand] = TypeAdapter(TrainerCommand)
