"""What is worth showing of a training, gathered from its events.  Knows no terminal."""

from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta

from headrace.cli.curves import Series
from headrace.events import Event, has_ended, state_name
from headrace.names import display_name, short_name
from headrace.resume import Interruption
from headrace.training.v1.training_event_pb2 import (
    EvaluationCompleted,
    ModelRegistered,
    PhaseChanged,
    ProfileRecorded,
    StateChanged,
    WarningRaised,
)
from headrace.training.v1.training_job_pb2 import CheckpointSaved, StepCompleted, TrainingJob

KEPT_LINES = 6
_PREFERRED = ("accuracy", "r2", "rmse", "mae", "loss")
_RISES = frozenset({"accuracy", "r2"})


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that happened, for people."""

    time: datetime
    text: str
    is_bad: bool = False


class Story:
    """One training so far."""

    def __init__(self, job: TrainingJob) -> None:
        self.job = job
        self.phase = ""
        self.step: StepCompleted | None = job.latest_step if job.HasField("latest_step") else None
        self.loss = Series()
        self.measure_name = ""
        self.measure = Series()
        self.best: float | None = None
        self.lines: deque[Line] = deque(maxlen=KEPT_LINES)
        self.interruption: Interruption | None = None

    def note(self, event: Event, job: TrainingJob) -> Line | None:
        """Take in an event, and the job after it; returns the line that tells it, for those worth one."""
        self.job, self.interruption = job, None
        line = self._tell(event)
        if line is not None:
            self.lines.append(line)
        return line

    def note_interruption(self, interruption: Interruption) -> None:
        """The connection broke and will be opened again."""
        self.interruption = interruption

    @property
    def title(self) -> str:
        """What is trained, on what, into what."""
        spec = self.job.spec
        kind = spec.WhichOneof("trainer")
        trainer = spec.plugin.name if kind == "plugin" else kind
        if not trainer:
            return short_name(self.job.name)
        return f"{trainer} · {display_name(spec.dataset)} → {display_name(spec.model)}"

    @property
    def state(self) -> str:
        """The state, and the phase within it."""
        name = state_name(self.job.state)
        return name if has_ended(self.job) or not self.phase else f"{name} · {self.phase.replace('_', ' ')}"

    @property
    def fraction(self) -> float:
        """The share of the training that is done, 0 to 1."""
        if self.job.state == TrainingJob.State.STATE_SUCCEEDED:
            return 1.0
        return self.step.fraction if self.step is not None else 0.0

    @property
    def place(self) -> str:
        """Where the training is: epoch and step, of how many where that is known."""
        step = self.step
        if step is None:
            return ""
        epochs = f"/{self.job.spec.epochs}" if self.job.spec.WhichOneof("length") == "epochs" else ""
        steps = f"/{round(step.step / step.fraction):,}" if step.fraction > 0 else ""
        return f"epoch {step.epoch}{epochs} · step {step.step:,}{steps}"

    @property
    def pace(self) -> str:
        """How fast it goes, and how long it will take."""
        step = self.step
        if step is None:
            return ""
        parts = [f"{step.samples_per_second:,.0f} samples/s"]
        if step.HasField("remaining") and not has_ended(self.job):
            parts.append(f"{describe_seconds(step.remaining.ToTimedelta().total_seconds())} left")
        if step.learning_rate:
            parts.append(f"learning rate {step.learning_rate:.2g}")
        if self.job.restarts:
            parts.append(f"restarts {self.job.restarts}")
        return "   ".join(parts)

    @property
    def step_time(self) -> str:
        """Where a step's time goes, the longest part first."""
        if self.step is None or not self.step.step_time:
            return ""
        parts = sorted(((share.ToTimedelta(), name) for name, share in self.step.step_time.items()), reverse=True)
        return "a step: " + ", ".join(f"{name} {describe_short(share)}" for share, name in parts)

    def _tell(self, event: Event) -> Line | None:
        match event.content:
            case StepCompleted() as step:
                self.step = step
                self.loss.append(step.loss)
                return None
            case EvaluationCompleted() as evaluation:
                return Line(event.time, self._tell_evaluation(evaluation))
            case CheckpointSaved() as checkpoint:
                text = f"checkpoint after step {checkpoint.step:,}, {describe_bytes(checkpoint.size_bytes)}"
                return Line(event.time, text)
            case PhaseChanged(phase=phase):
                self.phase = phase
                return Line(event.time, phase.replace("_", " "))
            case WarningRaised() as warning:
                return Line(event.time, f"warning: {warning.message or warning.code}", is_bad=True)
            case ModelRegistered() as registered:
                return Line(event.time, f"registered {registered.model_version}")
            case ProfileRecorded() as recorded:
                steps = f"{recorded.first_step:,} to {recorded.first_step + recorded.num_steps - 1:,}"
                return Line(event.time, f"trace of steps {steps}, {describe_bytes(recorded.size_bytes)}")
            case StateChanged() as change:
                return self._tell_change(event.time, change)
            case None:
                return None

    def _tell_evaluation(self, evaluation: EvaluationCompleted) -> str:
        if not self.measure_name:
            known = [name for name in _PREFERRED if name in evaluation.metrics]
            self.measure_name = next(iter(known or sorted(evaluation.metrics)), "")
        if self.measure_name in evaluation.metrics:
            value = evaluation.metrics[self.measure_name]
            self.measure.append(value)
            better = max if self.measure_name in _RISES else min
            self.best = value if self.best is None else better(self.best, value)
        measures = "  ".join(f"{name} {value:.4g}" for name, value in sorted(evaluation.metrics.items()))
        return f"epoch {evaluation.epoch}: {measures}{'  (best)' if evaluation.is_best else ''}"

    def _tell_change(self, time: datetime, change: StateChanged) -> Line:
        after = TrainingJob.State
        is_bad = change.to in {after.STATE_FAILED, after.STATE_RECOVERING}
        why = change.message or change.reason.replace("_", " ").lower()
        return Line(time, f"{state_name(change.to).lower()}{f': {why}' if why else ''}", is_bad)


def describe_seconds(seconds: float) -> str:
    """ "48 s", "3 min 20 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def describe_short(time: timedelta) -> str:
    """ "420 µs", "3.1 ms", "1.2 s"."""
    seconds = time.total_seconds()
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def describe_bytes(count: int) -> str:
    """ "912 B", "1.4 MB"."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
