"""Lanes that several models share: threads that hold a session of each model and run whichever has its turn.

Whose turn it is, is decided in `native/batching/lane_group.h` by what each model has cost so far: a slow one cannot
starve a fast one.  A lane opens, runs and closes sessions itself, between two batches; while it opens one, the others
wait.  What would end a model's own lane ends that model here, and no other.
"""

import queue
import threading
import time
from collections.abc import Callable

from headrace_server import _native
from headrace_server.inference.backends.backend import Session
from headrace_server.inference.batcher import Batcher
from headrace_server.inference.lane import DeadLaneError, Watcher, close_session, give_up, prepare, run_batch
from headrace_server.kernels.gate import ServingGate
from headrace_server.models.serving import LaneSharing, ServingOptions

JOIN_SECONDS = 5.0


def shares_lanes(serving: ServingOptions, default: LaneSharing, *, is_gpu: bool) -> bool:
    """Whether a model runs on the lanes of its device.

    As its owner says; who asks for a number of lanes and no more has them for himself; else as the server says, and
    that is by default: on a GPU, where two runs at the same time gain nothing.
    """
    sharing = serving.lane_sharing
    if sharing is LaneSharing.AUTO:
        sharing = default if serving.num_lanes is None else LaneSharing.OWN
    return is_gpu if sharing is LaneSharing.AUTO else sharing is LaneSharing.SHARED


class Guest:
    """One model in one shared lane; it leaves when its batcher is closed."""

    def __init__(
        self,
        number: int,
        open_session: Callable[[], Session],
        batcher: Batcher,
        watcher: Watcher,
        gate: ServingGate | None,
    ) -> None:
        self.number = number
        self.batcher = batcher
        self._open_session = open_session
        self._watcher = watcher
        self._gate = gate
        self._session: Session | None = None
        self._is_gone = threading.Event()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for it to leave; False if it has not."""
        return self._is_gone.wait(timeout_seconds)

    # What its lane calls.

    def open(self) -> bool:
        """Open the session; False when there is none, which its watcher has been told."""
        try:
            session = self._open_session()
        except BaseException as error:  # noqa: BLE001 - whoever waits for the model must hear of everything
            self.refuse(error)
            return False
        self._session = session
        self._watcher.has_opened(self.number, session)
        prepare(self.batcher, self.number, session, self._gate)
        return True

    def refuse(self, error: BaseException) -> None:
        """It is not let in."""
        self._is_gone.set()
        self._watcher.could_not_open(self.number, error)

    def run(self, batch: _native.Batch) -> _native.Batch | None:
        """Run one of its batches, and return what the lane runs next, whosever that is."""
        assert self._session is not None
        return run_batch(self._session, batch, self.batcher, self._gate)

    def die(self, error: BaseException) -> None:
        """End by a fault: everything that it holds is answered."""
        give_up(self.batcher, self._watcher, self.number, error)
        self.leave()

    def leave(self) -> None:
        """Close the session."""
        session, self._session = self._session, None
        if session is not None:
            close_session(session, self.number, self.batcher)
        self._is_gone.set()


class SharedLanes:
    """The lanes of one device; they live until they are closed."""

    def __init__(self, device: str, num_lanes: int) -> None:
        self.native = _native.LaneGroup(num_lanes)
        """What the batchers of all guests wait in."""
        self.num_lanes = num_lanes
        self._lanes = [_SharedLane(device, number, self.native) for number in range(num_lanes)]

    @property
    def is_closed(self) -> bool:
        """Whether they take nobody in any more: they were closed, or one has died."""
        return self.native.is_closed

    def start(
        self,
        number: int,
        _name: str,
        open_session: Callable[[], Session],
        batcher: Batcher,
        watcher: Watcher,
        gate: ServingGate | None = None,
    ) -> Guest:
        """Let a lane take a model in, as `Lane.start` makes one for it."""
        guest = Guest(number, open_session, batcher, watcher, gate)
        self._lanes[number].invite(guest)
        return guest

    def close(self) -> bool:
        """End the threads, and wait a while for them; False if one has not ended.  Guests have left before."""
        self.native.close()
        limit = time.monotonic() + JOIN_SECONDS
        return all(lane.join(max(limit - time.monotonic(), 0)) for lane in self._lanes)


class _SharedLane:
    """One thread."""

    def __init__(self, device: str, number: int, group: _native.LaneGroup) -> None:
        self._number = number
        self._group = group
        self._invited: queue.SimpleQueue[Guest] = queue.SimpleQueue()
        self._guests: dict[_native.Batcher, Guest] = {}
        self._lock = threading.Lock()  # of who is invited and who is still let in
        self._is_over = False
        # A run that never returns must not keep the process alive.
        self._thread = threading.Thread(target=self._live, name=f"lane-{device}-{number}", daemon=True)
        self._thread.start()

    def invite(self, guest: Guest) -> None:
        """Have somebody taken in before the next batch."""
        with self._lock:
            if not self._is_over:
                self._invited.put(guest)
                self._group.ring(self._number)
                return
        guest.refuse(DeadLaneError("the lane has ended"))

    def join(self, timeout_seconds: float) -> bool:
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _live(self) -> None:
        error: BaseException = DeadLaneError("the lane was closed")
        try:
            batch = None
            while batch is not None or not self._group.is_closed:
                if batch is not None:
                    batch = self._run(batch)
                else:
                    self._take_in()
                    self._see_off()
                    batch = self._group.take(self._number)  # or somebody has rung
        except BaseException as fault:  # noqa: BLE001 - callers must be answered, whatever it is
            error = fault
        self._end(error)

    def _run(self, batch: _native.Batch) -> _native.Batch | None:
        guest = self._guests[batch.batcher]
        try:
            return guest.run(batch)
        except BaseException as error:  # noqa: BLE001 - it is the end of this model, and of no other
            del self._guests[guest.batcher.native]
            guest.die(error)
            return None

    def _take_in(self) -> None:
        while not self._invited.empty():
            guest = self._invited.get()
            try:
                if guest.open():
                    self._guests[guest.batcher.native] = guest
            except BaseException as error:  # noqa: BLE001 - as when it runs
                guest.die(error)

    def _see_off(self) -> None:
        for native, guest in [*self._guests.items()]:
            if guest.batcher.is_closed:
                del self._guests[native]
                guest.leave()

    def _end(self, error: BaseException) -> None:
        """Nobody is left behind without an answer."""
        with self._lock:
            self._is_over = True
        self._group.close()
        while not self._invited.empty():
            self._invited.get().refuse(error)
        for guest in self._guests.values():
            if guest.batcher.is_closed:
                guest.leave()
            else:
                guest.die(error)


class LanesOfDevices:
    """The shared lanes of each device, made when the first model comes.  Belongs to the event loop."""

    def __init__(self, num_lanes: int) -> None:
        """`num_lanes` of each device."""
        self._num_lanes = num_lanes
        self._by_device: dict[str, SharedLanes] = {}

    def of(self, device: str) -> SharedLanes:
        """Those of a device; new ones after one has died."""
        lanes = self._by_device.get(device)
        if lanes is None or lanes.is_closed:
            lanes = self._by_device[device] = SharedLanes(device, self._num_lanes)
        return lanes

    def close(self) -> bool:
        """End all threads; blocks for a while.  False if one has not ended."""
        ended = [lanes.close() for lanes in self._by_device.values()]
        return all(ended)
