"""Records, when asked to, what some steps do, as a trace for Perfetto and chrome://tracing.

Costs a look at a queue each step while nobody asks.  Steps that are recorded take longer than others.
"""

import gzip
import queue
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from headrace_server.trainers.reports import ProfileWritten, TrainerReport, WarningRaised

if TYPE_CHECKING:
    from torch.profiler import profile

TRACE = "trace.json.gz"


class Profiling:
    """The recordings of one training, below `folder`; `requests` holds how many steps are wanted, for each of them."""

    def __init__(
        self, folder: Path, requests: "queue.SimpleQueue[int]", report: Callable[[TrainerReport], None]
    ) -> None:
        self._folder, self._requests, self._report = folder, requests, report
        self._recording: profile | None = None
        self._first_step = 0
        self._num_steps = 0

    def before_step(self, step: int) -> None:
        """Begin or end a recording; `step` is the number of steps that were done."""
        if self._recording is not None and step >= self._first_step + self._num_steps - 1:
            self._end(step)
        if self._recording is None and not self._requests.empty():
            self._begin(self._requests.get_nowait(), step + 1)

    def close(self, step: int) -> None:
        """Keep what is recorded when the training ends in its middle; `step` was the last one."""
        if self._recording is not None:
            self._end(step)

    def _begin(self, num_steps: int, step: int) -> None:
        from torch.profiler import ProfilerActivity, profile  # takes time that few trainings should spend

        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._recording = profile(activities=activities, record_shapes=True)
        self._recording.start()
        self._first_step, self._num_steps = step, num_steps

    def _end(self, step: int) -> None:
        assert self._recording is not None
        self._recording.stop()
        folder = self._folder / f"{self._first_step:012d}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                plain = Path(scratch) / "trace.json"
                self._recording.export_chrome_trace(str(plain))
                with plain.open("rb") as source, gzip.open(folder / TRACE, "wb", compresslevel=3) as target:
                    shutil.copyfileobj(source, target)
        except OSError as error:  # a training does not fail for it
            shutil.rmtree(folder, ignore_errors=True)
            self._report(WarningRaised(code="PROFILE_FAILED", message=f"the trace could not be written: {error}"))
        else:
            num_steps = step - self._first_step + 1
            self._report(ProfileWritten(folder=str(folder), first_step=self._first_step, num_steps=num_steps))
        self._recording = None
        while not self._requests.empty():  # one at a time: whoever asked meanwhile has to ask again
            self._requests.get_nowait()
            self._report(WarningRaised(code="PROFILE_BUSY", message="a trace was being recorded already"))
