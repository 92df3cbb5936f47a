"""Writes checkpoints in the background, and no faster than they are published.

A written folder belongs to the agent, which publishes it and then removes it.  The folders that are still there are
therefore the ones not yet published, and their number is bounded: 3 for ordinary checkpoints, 8 for best ones, and only
the last checkpoint of a process is written whatever there is.  One that is left out costs nothing but the steps after
the one before: every checkpoint carries the best weights.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from enum import IntEnum
from pathlib import Path

import structlog

from headrace_server.trainers.checkpoint import Checkpoint, remove_partial, write_checkpoint
from headrace_server.trainers.reports import CheckpointWritten, TrainerReport, WarningRaised

log = structlog.get_logger()


_NICER = 5
"""How much nicer than the training this thread is."""


class Importance(IntEnum):
    """How much is lost if a checkpoint is left out; the number is how many unpublished folders it tolerates."""

    ORDINARY = 3
    BEST = 8
    LAST = 1 << 30


class CheckpointWriter:
    """One background thread that writes below `folder`, one checkpoint at a time."""

    def __init__(self, folder: Path, report: Callable[[TrainerReport], None]) -> None:
        self._folder = folder
        self._report = report
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints", initializer=_give_way)
        self._writing: Future[None] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial(folder)

    def has_room(self, importance: Importance) -> bool:
        """Whether a checkpoint of this importance would be written now."""
        if importance is Importance.ORDINARY and self._writing is not None and not self._writing.done():
            return False
        return self._num_unpublished() < importance

    def write(self, checkpoint: Checkpoint, importance: Importance) -> None:
        """Have a checkpoint written and reported.  Waits for the one before.

        The last one is complete when this returns, and raises OSError if it cannot be written.  For others a disk that
        refuses is a warning: the training goes on without them.
        """
        self._wait()
        writing = self._thread.submit(self._write, checkpoint, is_last=importance is Importance.LAST)
        if importance is Importance.LAST:
            writing.result()
        else:
            self._writing = writing

    def close(self) -> None:
        """Wait for what is being written."""
        self._wait()
        self._thread.shutdown()

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()  # bounded by the disk; raises what is not the disk's fault
            self._writing = None

    def _num_unpublished(self) -> int:
        return sum(1 for _ in self._folder.iterdir())

    def _write(self, checkpoint: Checkpoint, *, is_last: bool) -> None:
        step = checkpoint.values.step
        folder = self._free_folder(step)
        try:
            digests = write_checkpoint(checkpoint, folder)
        except OSError as error:
            if is_last:
                raise
            log.warning("trainers.checkpoint_failed", step=step, error=str(error))
            self._report(WarningRaised(code="CHECKPOINT_FAILED", message=f"no checkpoint of step {step}: {error}"))
            return
        is_best = checkpoint.values.standing.best_step == step
        self._report(CheckpointWritten(folder=str(folder), step=step, is_best=is_best, digests=digests))

    def _free_folder(self, step: int) -> Path:
        """A name that is not taken by the same step of an earlier process in this workspace."""
        folder, number = self._folder / f"{step:012d}", 1
        while folder.exists():
            number += 1
            folder = self._folder / f"{step:012d}-{number}"
        return folder


def _give_way() -> None:
    """Let the threads that train have the processor first."""
    with contextlib.suppress(OSError):
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICER)
