"""Turns steps into reports, seldom enough to cost nothing.

A step only adds its loss to a sum that lies on the device.  The sum is read, which is when the host waits for the
device, at the first step, then at most every `PERIOD_SECONDS`, and whenever the loop asks for the truth.
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
    ) -> None:
        self._report, self._measure = report, measure
        self._has_measures = any(name != "loss" for name in measures)
        self._num_steps = num_steps
        self._loss_sum = torch.zeros((), device=device)
        self._answers: deque[tuple[Tensor, Tensor]] = deque()
        self._kept_elements = 0
        self._rows = 0
        self._steps_here = 0
        self.last_finite_loss: float | None = None
        """As it was read last; evidence for when it no longer is."""
        self._began_at = self._read_at = time.perf_counter()
        self._paused_seconds = 0.0
        self._due_at = -math.inf
        self.stopwatch = make_stopwatch(device)

    def add(self, rows: int, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Collect a step that was just done."""
        self._rows += rows
        self._steps_here += 1
        self._loss_sum.add_(loss, alpha=rows)
        if self._has_measures:
            self._keep(outputs, targets)

    def is_due(self) -> bool:
        """Whether it is time for a report."""
        return time.perf_counter() >= self._due_at

    def paused_since(self, began_at: float) -> None:
        """Leave the time since `began_at` (of `time.perf_counter`) out of the rate: something else was being done."""
        self._paused_seconds += time.perf_counter() - began_at

    def flush(self, step: int, epoch: int, learning_rate: float) -> None:
        """Report all steps up to `step`, the last one that was collected; nothing if there is none.

        Raises Diverged if their loss is not finite.
        """
        if not self._rows:
            return
        loss = float(self._loss_sum) / self._rows
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss}", step, self.last_finite_loss, learning_rate)
        self.last_finite_loss = loss
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
                step_seconds=dict(self.stopwatch.read()),
                remaining_seconds=self._remaining_seconds(step, now),
            )
        )
        self._loss_sum.zero_()
        self._answers.clear()
        self._kept_elements = self._rows = 0
        self._paused_seconds, self._read_at, self._due_at = 0.0, now, now + PERIOD_SECONDS

    def _keep(self, outputs: Tensor, targets: Tensor) -> None:
        """Keep answers for `measure`: the newest ones, so that long or large steps do not fill the memory."""
        self._answers.append((outputs.detach(), targets))
        self._kept_elements += outputs.numel()
        while self._kept_elements > _KEPT_ELEMENTS and len(self._answers) > 1:
            self._kept_elements -= self._answers.popleft()[0].numel()

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
