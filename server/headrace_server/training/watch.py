"""The newest worker of a job as this process sees it: its lease, its connection, and the order to stop it may have.

Waits for the worker's end, whichever way it comes.  Decides nothing about the job.
"""

import asyncio
from collections.abc import Awaitable, Callable
from enum import IntEnum

from headrace_server.settings import TrainingSettings
from headrace_server.training.attempt import Attempt
from headrace_server.training.conclusion import Silence
from headrace_server.training.lease import Lease
from headrace_server.training.session import ProfileWorker, StopWorker, TrainerEnded, WorkerSession

REATTACH_LEASES = 2.5
"""Leases that a worker of an earlier server process has to come back: it tries again in pauses, and this process may
still be opening its doors."""
LOOK_SECONDS = 1.0
"""How often a worker that is not connected is looked for: one whose process is gone need not be waited for."""


class Order(IntEnum):
    """How far a worker was told to stop; it only ever goes further."""

    NONE = 0
    GRACEFUL = 1
    KILL = 2


class Watch:
    """One attempt, watched."""

    def __init__(
        self,
        attempt: Attempt,
        settings: TrainingSettings,
        clock: Callable[[], float],
        look: Callable[[], Awaitable[str | None]],
        *,
        is_fresh: bool,
    ) -> None:
        """`is_fresh`: this process has just launched it; else an earlier one did, and it may or may not be alive.

        `look` tells how the worker's process ended; None while it may still run.
        """
        self.attempt = attempt
        self.session: WorkerSession | None = None
        self._settings = settings
        self._clock = clock
        self._look = look
        self._is_fresh = is_fresh
        self._has_attached = False
        first = settings.attach_seconds if is_fresh else settings.lease_seconds * REATTACH_LEASES
        self._first_seconds = first
        self._lease = Lease(settings.lease_seconds, first, clock)
        self._ended = attempt.ended
        self._order = Order.NONE
        self._kill_at: float | None = None
        self._is_left = False
        self._bell = asyncio.Event()

    async def end(self) -> TrainerEnded | Silence | None:
        """Wait for the worker's end: what it said last, or why it is given up; None when this server leaves it alone.

        May be called again when the end could not be acted on: the worker may have come back meanwhile.
        """
        while True:
            bell = self._bell  # taken before looking, so that no ring is missed
            if self._ended is not None:
                return self._ended
            if self._is_left:
                return None
            seconds = min(self._lease.seconds_left(), self._seconds_to_kill())
            if seconds <= 0:
                return self._describe_silence()
            # A connection is gone only when all that came over it is kept: nothing can be on its way any more.
            if self._is_missed() and (ending := await self._look()) is not None and self._is_missed():
                return self._describe_death(ending)
            try:
                async with asyncio.timeout(min(seconds, self._lease.tick_seconds, LOOK_SECONDS)):
                    await bell.wait()
            except TimeoutError:
                pass

    def renew(self) -> None:
        """The worker gave a sign of life."""
        self._lease.renew()

    def welcome(self, session: WorkerSession) -> None:
        """The worker is connected; an earlier connection of it ends."""
        if self.session is not None:
            self.session.fence(self.attempt.number)
        self.session = session
        self._has_attached = True
        self._lease.renew()
        self._pass_on()
        self._ring()

    def note_gone(self, session: WorkerSession) -> None:
        """A connection is gone."""
        if self.session is session:
            self.session = None
            self._ring()

    def note_end(self, ended: TrainerEnded) -> None:
        """The worker said how its trainer ended, and that is durable."""
        self._ended = ended
        self._ring()

    def stop(self, order: Order) -> None:
        """Tell the worker to stop, and give it up when it does not in time.  Repeating or going back does nothing."""
        if order <= self._order:
            return
        self._order = order
        is_at_work = self._has_attached or self.attempt.has_attached
        if self.session is None and (order is Order.KILL or not is_at_work):
            self._kill_at = self._clock()
        else:  # the worker ends itself in time; the margin is for one that cannot
            self._kill_at = self._clock() + self._grace_seconds + self._settings.lease_seconds
        self._pass_on()
        self._ring()

    def profile(self, num_steps: int) -> bool:
        """Have steps recorded; whether there is a worker that could."""
        if self.session is None:
            return False
        self.session.profile(ProfileWorker(num_steps))
        return True

    def leave(self) -> None:
        """Stop watching; the worker goes on."""
        self._is_left = True
        self._ring()

    def fence(self, current: int) -> None:
        """End the connection because another worker has the job, or none."""
        if self.session is not None:
            self.session.fence(current)
            self.session = None

    async def wait_until_gone(self, seconds: float) -> None:
        """Wait for the worker to hang up, at most this long."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    bell = self._bell
                    if self.session is None or self.session.is_closed:
                        return
                    await bell.wait()
        except TimeoutError:
            return

    @property
    def _grace_seconds(self) -> float:
        return 0.0 if self._order is Order.KILL else self._settings.cancel_grace_seconds

    def _is_missed(self) -> bool:
        """Whether it has neither a connection nor an end."""
        return self.session is None and self._ended is None

    def _seconds_to_kill(self) -> float:
        return float("inf") if self._kill_at is None else self._kill_at - self._clock()

    def _pass_on(self) -> None:
        if self._order is not Order.NONE and self.session is not None:
            self.session.stop(StopWorker(kill=self._order is Order.KILL, grace_seconds=self._grace_seconds))

    def _describe_silence(self) -> Silence:
        if self._seconds_to_kill() <= 0:
            return Silence("the worker did not end in time")
        if self._has_attached:
            return Silence(f"the worker was silent for {self._settings.lease_seconds:g} s")
        if self._is_fresh:
            return Silence(f"the worker did not attach within {self._first_seconds:g} s")
        if self.attempt.has_attached:
            return Silence(f"the worker did not come back within {self._first_seconds:g} s of the server's restart")
        return Silence("the server was restarted before the worker began", counts=False)

    def _describe_death(self, ending: str) -> Silence:
        if not self._is_fresh and not self.attempt.has_attached:
            return Silence("the server was restarted before the worker began", counts=False)
        when = "" if self._has_attached or self.attempt.has_attached else " before it attached"
        return Silence(f"the worker {ending}{when}")

    def _ring(self) -> None:
        self._bell.set()
        self._bell = asyncio.Event()
