"""What a training is to do beside its steps (report, checkpoint, stop), as all of its ranks agree on it.

Only rank 0 knows the time, hears a stop and sees the room for checkpoints.  What it wants travels to the others while
the next micro-batch is computed, and is done by all of them at the same place after it.
"""

import threading
import time
from collections.abc import Callable

from headrace_server.trainers.checkpoint_writer import CheckpointWriter, Importance
from headrace_server.trainers.ranks import (
    CHECKPOINT,
    NOTHING,
    REPORT,
    ROOM,
    ROOM_FOR_BEST,
    STOP,
    Wishes,
    World,
)

_RETRY_SECONDS = 1.0  # after a checkpoint for which there was no room


class Agreement:
    """One training's.  Only rank 0 has `checkpoints` and hears `stop`."""

    def __init__(
        self,
        world: World,
        stop: threading.Event,
        checkpoints: CheckpointWriter | None,
        is_report_due: Callable[[], bool],
        checkpoint_period_seconds: float,
    ) -> None:
        self._world, self._stop, self._checkpoints, self._is_report_due = world, stop, checkpoints, is_report_due
        self._is_alone = world.place.size == 1
        self._is_stopping = False
        self._period_seconds = checkpoint_period_seconds
        self._checkpoint_due_at = 0.0
        self.note_checkpoint()

    def take(self) -> Wishes:
        """What is to be done now, after a step.  `post` must follow before the next micro-batch."""
        wishes = self._world.take(self._wishes)
        self._is_stopping = bool(wishes & STOP)
        return wishes

    def post(self) -> None:
        """Let rank 0 say what it wants after the next micro-batch."""
        self._world.post(self._wishes)

    def is_told_to_stop(self) -> bool:
        """Whether to stop before the next step."""
        return self._stop.is_set() if self._is_alone else self._is_stopping

    def is_told_to_stop_inside(self) -> bool:
        """Whether to stop between two micro-batches of a step."""
        if self._is_alone:
            return self._stop.is_set()
        if not self.take() & STOP:
            self.post()  # what else was wanted is wanted still
        return self._is_stopping

    def has_room(self, importance: Importance, wishes: Wishes | None = None) -> bool:
        """Whether there is room for a checkpoint; what rank 0 said about it where `wishes` are those of many ranks."""
        if wishes is not None and not self._is_alone:
            return bool(wishes & (ROOM_FOR_BEST if importance is Importance.BEST else ROOM))
        return self._checkpoints is not None and self._checkpoints.has_room(importance)

    def note_checkpoint(self) -> None:
        """One was taken; the next is due a period from now."""
        self._checkpoint_due_at = time.monotonic() + self._period_seconds

    def _wishes(self) -> Wishes:
        """What is to happen, as far as only this rank can know it."""
        wishes = REPORT if self._is_report_due() else NOTHING
        if time.monotonic() >= self._checkpoint_due_at and not self.is_told_to_stop():
            if self.has_room(Importance.ORDINARY):
                wishes |= CHECKPOINT
            else:
                self._checkpoint_due_at = time.monotonic() + _RETRY_SECONDS
        if not self._is_alone:
            wishes |= STOP if self._stop.is_set() else NOTHING
            wishes |= ROOM if self.has_room(Importance.ORDINARY) else NOTHING
            wishes |= ROOM_FOR_BEST if self.has_room(Importance.BEST) else NOTHING
        return wishes
