"""What is known of one version that is loaded, being loaded, or could not be."""

import asyncio
import math
import time
from dataclasses import dataclass, field
from typing import TypeAlias

from headrace_server.errors import HeadraceError, ModelLoading, Overloaded
from headrace_server.inference.prediction import Readiness
from headrace_server.inference.resident import Resident
from headrace_server.models.version import ModelVersion

Key: TypeAlias = tuple[str, int, str]


@dataclass(slots=True, eq=False)
class Slot:
    """One version.  Belongs to the event loop."""

    version: ModelVersion
    readiness: Readiness = Readiness.LOADING
    resident: Resident | None = None
    failure: HeadraceError | None = None
    failed_at: float = 0.0
    waiters: set["asyncio.Future[Resident]"] = field(default_factory=set)
    waiting_bytes: int = 0
    nbytes: int = 0
    """The memory it takes: what is expected until it is loaded, then what was measured."""
    has_room: bool = False

    @property
    def last_used_at(self) -> float:
        """Calls of the native door borrow nothing: when the last one ended is known to who counts them."""
        return self.resident.last_used_at if self.resident is not None else math.inf

    @property
    def may_be_tried_again(self) -> bool:
        """A failure for want of memory or disk is forgotten after a while; a broken model stays broken."""
        failure = self.failure
        if isinstance(failure, ModelLoading):  # it was interrupted
            return True
        return (
            isinstance(failure, Overloaded) and time.monotonic() >= self.failed_at + failure.retry_after.total_seconds()
        )

    def fail(self, failure: HeadraceError) -> None:
        """It could not be loaded; whoever waits for it hears why."""
        self.readiness, self.failure, self.failed_at = Readiness.FAILED, failure.with_traceback(None), time.monotonic()
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(failure)

    def open(self, resident: Resident) -> None:
        """It is ready, and lent to whoever waits for it."""
        self.resident, self.readiness = resident, Readiness.READY
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(resident.borrow())
