"""Turns steps into reports, seldom enough to cost nothing.

A step only adds its loss to a sum that lies on the device.  The sum is read, which is when the host waits for the
device, at the first step, then at most every `PERIOD_SECONDS`, and whenever the loop asks for the truth.  The losses
themselves are kept until then, so that one that is not finite is found by its step, and costs nothing while there is
none.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from headrace_server.trainers.failures import Diverged
from headrace_server.trainers.reports import StepCompleted
from headrace_server.trainers.stopwatch import make_stopwatch
from headrace_server.trainers.task import Direction

PERIOD_SECONDS = 0.1
_KEPT_ELEMENTS = 1 << 20
_KEPT_LOSSES = 1 << 14  # far more than there are steps between two readings

Measure = Callable[[Tensor, Tensor], dict[str, Tensor]]


class Progress:
    """Collects steps since the last report."""

    def __init__(
        self,
        report: Callable[[StepCompleted], None],
        measures: Mapping[str, Direction],
        measure: Measure,
        device: torch.device,
        num_steps: int,
        rate_of: Callable[[int], float],
        *,
        leaves_out_non_finite: bool = False,
    ) -> None:
        """`rate_of` is the learning rate of a step, counted from 1; for evidence."""
        self._report, self._measure, self._rate_of = report, measure, rate_of
        # Where steps that are not finite are left out, their losses must not spoil the mean of the others.
        self._finite_rows = torch.zeros((), device=device) if leaves_out_non_finite else None
        self._has_measures = any(name != "loss" for name in measures)
        self._num_steps = num_steps
        self._loss_sum = torch.zeros((), device=device)
        self._losses: deque[Tensor] = deque(maxlen=_KEPT_LOSSES)
        self._answers: deque[tuple[Tensor, Tensor]] = deque()
        self._kept_elements = 0
        self._rows = 0
        self._steps_here = self._steps_reported = 0
        self._noted_seconds: dict[str, float] = {}
        self.row_seconds: float | None = None
        """How long a row would take at the peak of the device; None where that is not known."""
        self._last_loss: Tensor | None = None  # that was reported
        self._last_finite_mean: float | None = None
        self._began_at = self._read_at = time.perf_counter()
        self._paused_seconds = 0.0
        self._due_at = -math.inf
        self.stopwatch = make_stopwatch(device)

    def add(self, rows: int, loss: Tensor) -> None:
        """Collect a step that was just done: its rows and their mean loss, which nobody may change any more."""
        self._rows += rows
        self._losses.append(loss)
        self._steps_here += 1
        if self._finite_rows is None:
            self._loss_sum.add_(loss, alpha=rows)
            return
        is_finite = loss.isfinite()
        self._loss_sum.add_(torch.where(is_finite, loss, 0), alpha=rows)
        self._finite_rows.add_(is_finite, alpha=rows)

    def keep(self, outputs: Tensor, targets: Tensor) -> None:
        """Keep answers for `measure`: the newest ones, so that long or large steps do not fill the memory."""
        if not self._has_measures:
            return
        self._answers.append((outputs.detach(), targets))
        self._kept_elements += outputs.numel()
        while self._kept_elements > _KEPT_ELEMENTS and len(self._answers) > 1:
            self._kept_elements -= self._answers.popleft()[0].numel()

    @property
    def has_news(self) -> bool:
        """Whether a step was collected since the last report."""
        return self._rows > 0

    def is_due(self) -> bool:
        """Whether it is time for a report."""
        return time.perf_counter() >= self._due_at

    def paused_since(self, began_at: float, part: str | None = None) -> None:
        """Leave the time since `began_at` (of `time.perf_counter`) out of the rate: something else was being done.

        `part` names what, if it is one of the parts of a step's time.
        """
        seconds = time.perf_counter() - began_at
        self._paused_seconds += seconds
        if part is not None:
            self.note(part, seconds)

    def note(self, part: str, seconds: float) -> None:
        """Count time of the host for a part of the steps since the last report: "checkpoint", "yield"."""
        self._noted_seconds[part] = self._noted_seconds.get(part, 0.0) + seconds

    def flush(
        self,
        step: int,
        epoch: int,
        learning_rate: float,
        *,
        gradient_norm: float | None = None,
        skipped_steps: int = 0,
    ) -> None:
        """Report all steps up to `step`, the last one that was collected; there must be one.

        Raises Diverged, which names the first of them whose loss is not finite, unless such steps are left out.
        """
        loss = self._mean_loss()
        if math.isfinite(loss):
            self._last_finite_mean = loss
        elif self._finite_rows is None:
            raise self._diverged(loss, step)
        now = time.perf_counter()
        seconds = max(1e-9, now - self._read_at - self._paused_seconds)
        self._report(
            StepCompleted(
                step=step,
                epoch=epoch,
                fraction=step / self._num_steps,
                loss=loss,
                metrics=self._read_measures(),
                learning_rate=learning_rate,
                samples_per_second=self._rows / seconds,
                model_flops_utilization=None if self.row_seconds is None else self._rows / seconds * self.row_seconds,
                step_seconds=self._step_seconds(),
                remaining_seconds=self._remaining_seconds(step, now),
                gradient_norm=gradient_norm,
                skipped_steps=skipped_steps,
            )
        )
        self._answers.clear()
        self._last_loss = self._losses[-1]
        self._losses.clear()
        self._kept_elements = self._rows = 0
        self._paused_seconds, self._read_at, self._due_at = 0.0, now, now + PERIOD_SECONDS

    @property
    def last_finite_loss(self) -> float | None:
        """That of the newest step that had one, or at least of the newest report.  Evidence: waits for the device."""
        losses = self._read_losses()
        return next((loss for loss in reversed(losses) if math.isfinite(loss)), self._last_finite_mean)

    def _diverged(self, mean: float, step: int) -> Diverged:
        """The evidence: which of the steps up to `step` was the first without a finite loss, and the loss before it."""
        losses = self._read_losses()
        first = next((place for place, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if first is None:  # each is finite, but not their sum
            return Diverged(f"the sum of losses is {mean}", step, losses[-1], self._rate_of(step))
        before = losses[first - 1] if first else self._last_finite_mean
        step += 1 + first - len(losses)
        return Diverged(f"the loss is {losses[first]}", step, before, self._rate_of(step))

    def _read_losses(self) -> list[float]:
        """The loss of each step since the last report, and that of the last one that was in it."""
        kept = ([] if self._last_loss is None else [self._last_loss]) + list(self._losses)
        return torch.stack(kept).tolist() if kept else []

    def _step_seconds(self) -> dict[str, float]:
        num_steps = max(1, self._steps_here - self._steps_reported)
        self._steps_reported = self._steps_here
        noted = {part: seconds / num_steps for part, seconds in self._noted_seconds.items()}
        self._noted_seconds = {}
        return {part: seconds for part, seconds in {**self.stopwatch.read(), **noted}.items() if seconds > 0}

    def _mean_loss(self) -> float:
        """Read the sum, which waits for the device, and begin another; NaN when every step was left out."""
        rows = float(self._rows)
        if self._finite_rows is not None:
            rows = float(self._finite_rows) or math.nan
            self._finite_rows.zero_()
        loss = float(self._loss_sum) / rows
        self._loss_sum.zero_()
        return loss

    def _read_measures(self) -> dict[str, float]:
        if not self._answers:
            return {}
        outputs = torch.cat([outputs for outputs, _ in self._answers]).float()
        targets = torch.cat([targets for _, targets in self._answers])
        with torch.no_grad():
            values = {name: float(value) for name, value in self._measure(outputs, targets).items()}
        return {name: value for name, value in values.items() if name != "loss" and math.isfinite(value)}

    def _remaining_seconds(self, step: int, now: float) -> float | None:
        """From the pace of this process, evaluations included; unknown at its first step, which warms everything up."""
        if self._steps_here < 2:
            return None
        return (now - self._began_at) / self._steps_here * (self._num_steps - step)
