"""Which versions are loaded: loads each once however many ask, lends it out, and lets the least recently used go.

A version that is lent is never unloaded; one that must go is withdrawn first, so that new calls do not find it, and
closed when the last call has given it back.  Belongs to the event loop.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable

import structlog

from headrace_server.errors import (
    DeviceOutOfMemory,
    HeadraceError,
    ModelFailed,
    ModelLoading,
    ModelNotLoaded,
)
from headrace_server.inference.errands import Errands
from headrace_server.inference.prediction import Readiness
from headrace_server.inference.resident import Resident
from headrace_server.inference.room import Room
from headrace_server.inference.slot import Key, Slot
from headrace_server.memory import Ledger, give_back_freed_memory
from headrace_server.models.snapshot import Snapshot
from headrace_server.models.version import ModelVersion

MOST_FAILURES = 1024
LEAST_BYTES_TO_GIVE_BACK = 16 << 20
"""What a smaller version leaves is not worth going through all freed memory for: meanwhile nobody can allocate."""

log = structlog.get_logger()


class Residency:
    """The loaded versions, at most `max_loaded`, those that are being loaded or closed included."""

    def __init__(
        self,
        open_resident: Callable[[ModelVersion, str, Callable[[Resident], None]], Awaitable[Resident]],
        close_resident: Callable[[Resident], Awaitable[None]],
        errands: Errands,
        *,
        max_loaded: int,
        load_seconds: float,
        most_waiting_calls: int,
        most_waiting_bytes: int,
        occupied: Callable[[int], None],
        ledger: Ledger,
        expected_bytes: Callable[[ModelVersion], int],
    ) -> None:
        """`open_resident` gets a version, the name of a backend or "", and whom to tell when it dies.

        `occupied` hears how many versions are loaded, whenever that changes.  `expected_bytes` guesses what a version
        takes that was never loaded before; from then on it is measured.
        """
        self._open_resident = open_resident
        self._close_resident = close_resident
        self._errands = errands
        self._load_seconds = load_seconds
        self._most_waiting_calls = most_waiting_calls
        self._most_waiting_bytes = most_waiting_bytes
        self._slots: OrderedDict[Key, Slot] = OrderedDict()  # least recently used first
        self._failures: OrderedDict[Key, Slot] = OrderedDict()
        self._room = Room(
            ledger,
            lambda: [*self._slots.values()],
            self._withdraw,
            max_held=max_loaded,
            expected_bytes=expected_bytes,
            occupied=occupied,
        )
        self._ready: Counter[str] = Counter()
        self._listeners: list[Callable[[str, bool], None]] = []
        self._has_come: Callable[[Resident], None] = _ignore
        self._will_go: Callable[[Resident], None] = _ignore
        self._leaving: dict[Resident, asyncio.Task[None]] = {}
        self._loaded_listeners: list[Callable[[ModelVersion, bool], None]] = []

    @property
    def pinned(self) -> set[str]:
        """The ids of models whose versions stay, however long nobody asks for them."""
        return self._room.pinned

    # Lending.

    def borrow_ready(self, version: ModelVersion) -> Resident | None:
        """Lend a version that is ready; None when it is not."""
        key = version.key
        slot = self._slots.get(key)
        if slot is None or slot.resident is None:
            return None
        self._slots.move_to_end(key)
        return slot.resident.borrow()

    async def borrow(
        self,
        version: ModelVersion,
        *,
        backend: str = "",
        deadline: float | None = None,
        again: bool = False,
        nbytes: int = 0,
    ) -> Resident:
        """Lend a version, loading it if need be.  Whoever gets it calls `give_back`; `nbytes` is what they hold.

        Raises ModelLoading when `deadline` (time.monotonic()) comes first or too many wait already, or the failure to
        load it: this one's, or, unless `again`, an earlier one's.
        """
        resident = self.borrow_ready(version)
        if resident is not None and backend in ("", resident.backend):
            return resident
        if resident is not None:
            resident.give_back()
            self._withdraw(self._slots[version.key])
        slot = self._slots.get(version.key) or self._begin(version, backend, again)
        is_full = (
            slot.waiting_bytes + nbytes > self._most_waiting_bytes or len(slot.waiters) >= self._most_waiting_calls
        )
        if is_full and slot.waiters:
            raise ModelLoading(str(version.name))
        waiter: asyncio.Future[Resident] = asyncio.get_running_loop().create_future()
        slot.waiters.add(waiter)
        slot.waiting_bytes += nbytes
        try:
            async with asyncio.timeout(None if deadline is None else max(deadline - time.monotonic(), 0)):
                return await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().give_back()  # it was lent to us in the moment in which we left
            if isinstance(error, TimeoutError):
                raise ModelLoading(str(version.name)) from None
            raise
        finally:
            slot.waiters.discard(waiter)
            slot.waiting_bytes -= nbytes

    async def unload(self, version: ModelVersion) -> None:
        """Withdraw a version and wait until it is closed.  Raises ModelNotLoaded when it is not loaded."""
        slot = self._slots.get(version.key)
        if slot is None:
            raise ModelNotLoaded(str(version.name))
        if slot.resident is None:
            (await self.borrow(version)).give_back()
        if slot.resident is not None:
            if slot is self._slots.get(version.key):
                self._withdraw(slot)
            leaving = self._leaving.get(slot.resident)
            if leaving is not None:
                await asyncio.shield(leaving)

    async def load(self, version: ModelVersion) -> None:
        """Load a version; returns when it answers.  Raises why it could not be loaded."""
        (await self.borrow(version)).give_back()

    async def make_room(self, nbytes: int) -> int:
        """Have versions leave that nobody uses until a training job may take so much; returns what is missing then."""
        return await self._room.make_for_job(nbytes)

    # Looking.

    def look(self, version: ModelVersion) -> tuple[Readiness, HeadraceError | None, Resident | None]:
        """How a version is."""
        key = version.key
        slot = self._slots.get(key) or self._failures.get(key)
        return (slot.readiness, slot.failure, slot.resident) if slot is not None else (Readiness.UNLOADED, None, None)

    def readiness(self, version: ModelVersion) -> Readiness:
        """How a version is, in a word."""
        return self.look(version)[0]

    def resident(self, key: Key) -> Resident | None:
        """What runs a version; None while it is not ready.  From any thread."""
        slot = self._slots.get(key)
        return slot.resident if slot is not None else None

    @property
    def versions(self) -> list[ModelVersion]:
        """All that are ready or being loaded."""
        return [slot.version for slot in self._slots.values()]

    @property
    def residents(self) -> list[Resident]:
        """All that are ready or leaving.  From any thread."""
        ready = [slot.resident for slot in list(self._slots.values()) if slot.resident is not None]
        return [*ready, *list(self._leaving)]

    def watch(self, listener: Callable[[str, bool], None]) -> None:
        """Call `listener` with `models/{model}` and True when its first version is ready, False after the last."""
        self._listeners.append(listener)

    def announce(self, has_come: Callable[[Resident], None], will_go: Callable[[Resident], None]) -> None:
        """Call these with each resident in the moment in which it is ready, and before it is withdrawn.

        One that is replaced is not withdrawn: who comes takes its place.
        """
        self._has_come, self._will_go = has_come, will_go

    async def close(self) -> None:
        """Close everything.  Loads must have been ended before, by closing the errands."""
        for slot in list(self._slots.values()):
            if slot.resident is not None:
                self._withdraw(slot, is_patient=False)
        await self._errands.finish()

    def when_loaded(self, listener: Callable[[ModelVersion, bool], None]) -> None:
        """Call `listener` with a version that has become ready, and whether its caller chose the backend."""
        self._loaded_listeners.append(listener)

    async def exchange(self, old: Resident, open_new: Callable[[], Awaitable[Resident]]) -> Resident | None:
        """Open what takes the place of `old`, let new calls find it, and see `old` off when its calls are answered.

        None, and what was opened is closed again, when `old` is not what runs any more.  For a while both are in
        memory; there must be room.  Raises DeviceOutOfMemory, ModelFailed, or what opening raises; then `old` stays.
        """
        slot = self._slots.get(old.version.key)
        if slot is None or slot.resident is not old:
            return None
        try:
            async with asyncio.timeout(self._load_seconds):
                place = await self._room.make_beside(slot, slot.nbytes)
                try:
                    new, nbytes = await self._open(open_new, old)
                except BaseException:
                    self._room.leave(place)
                    raise
        except TimeoutError:
            problem = f"its plan could not be opened within {self._load_seconds:g} seconds"
            raise ModelFailed(str(old.version.name), problem) from None
        if self._slots.get(old.version.key) is not slot or slot.resident is not old:
            await self._close_resident(new)
            self._room.leave(place)
            return None
        slot.resident = new
        self._room.settle(place)
        left_bytes = slot.nbytes
        self._room.is_leaving(old, left_bytes)
        self._room.remember(slot, nbytes)
        self._has_come(new)
        self._leaving[old] = self._errands.start(self._see_off(old, left_bytes, is_patient=True))
        return new

    # Loading.

    def _begin(self, version: ModelVersion, backend: str, again: bool) -> Slot:
        key = version.key
        failed = self._failures.get(key)
        if failed is not None and not again and not failed.may_be_tried_again:
            assert failed.failure is not None
            raise failed.failure.with_traceback(None)  # else it would grow with each caller
        slot = self._slots[key] = Slot(version)
        self._errands.start(self._load(slot, backend))
        return slot

    async def _load(self, slot: Slot, backend: str) -> None:
        key = slot.version.key
        try:
            async with asyncio.timeout(self._load_seconds):
                await self._room.make(slot)
                resident, nbytes = await self._open(lambda: self._open_resident(slot.version, backend, self.discard))
        except BaseException as error:
            if slot.has_room:
                self._room.leave()
            del self._slots[key]
            self._fail(slot, self._failure(slot.version, error))
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        self._room.remember(slot, nbytes)
        slot.resident = resident
        self._has_come(resident)
        self._failures.pop(key, None)
        slot.open(resident)
        self._count_ready(slot.version, 1)
        self._room.ring()
        for listener in self._loaded_listeners:
            listener(slot.version, bool(backend))

    async def _open(
        self, open_resident: Callable[[], Awaitable[Resident]], beside: Resident | None = None
    ) -> tuple[Resident, int]:
        """Open a resident, and say what it takes; when its device has no memory for it, others leave that are idle.

        What a GPU has left is only known there.  Raises DeviceOutOfMemory when nobody is left who could leave.
        """
        while True:
            try:
                return await self._room.measured(open_resident())
            except DeviceOutOfMemory as error:
                idle = [slot for slot in self._room.idle_on(error.device) if slot.resident is not beside]
                if not idle:
                    raise
                await self._evict(idle[0])

    async def _evict(self, slot: Slot) -> None:
        resident = slot.resident
        assert resident is not None
        self._withdraw(slot)
        await asyncio.shield(self._leaving[resident])

    def _fail(self, slot: Slot, failure: HeadraceError) -> None:
        self._failures[slot.version.key] = slot
        if len(self._failures) > MOST_FAILURES:
            self._failures.popitem(last=False)
        slot.fail(failure)
        log.warning("inference.load_failed", model=str(slot.version.name), problem=str(failure))

    def _failure(self, version: ModelVersion, error: BaseException) -> HeadraceError:
        if isinstance(error, HeadraceError):
            return error
        if isinstance(error, asyncio.CancelledError):
            return ModelLoading(str(version.name))
        if isinstance(error, TimeoutError):
            problem = f"it could not be loaded within {self._load_seconds:g} seconds"
        else:
            problem = f"it could not be loaded: {type(error).__name__}: {error}"
        failure = ModelFailed(str(version.name), problem)
        failure.__cause__ = error.with_traceback(None)  # it is kept: frames would keep what was being loaded
        return failure

    def _withdraw(self, slot: Slot, *, is_patient: bool = True) -> None:
        """Let no new call find a version, and close it when the calls that have it are finished."""
        resident = slot.resident
        assert resident is not None
        self._will_go(resident)
        del self._slots[slot.version.key]
        self._count_ready(slot.version, -1)
        self._room.is_leaving(resident, slot.nbytes)
        self._leaving[resident] = self._errands.start(self._see_off(resident, slot.nbytes, is_patient=is_patient))

    async def _see_off(self, resident: Resident, nbytes: int, *, is_patient: bool) -> None:
        try:
            if is_patient:
                await resident.wait_until_free()
        finally:
            try:
                await self._close_resident(resident)
            finally:
                del self._leaving[resident]
                if nbytes >= LEAST_BYTES_TO_GIVE_BACK:
                    await asyncio.to_thread(give_back_freed_memory)
                self._room.leave(resident)

    def discard(self, resident: Resident) -> None:
        """A resident has died: the next call loads the version anew."""
        slot = self._slots.get(resident.version.key)
        if slot is not None and slot.resident is resident:
            self._withdraw(slot)

    def _count_ready(self, version: ModelVersion, change: int) -> None:
        if isinstance(version, Snapshot):
            return  # nobody waits for a job to be served: it is as soon as it is asked
        model = version.model
        before = self._ready[model]
        self._ready[model] += change
        if not self._ready[model]:
            del self._ready[model]
        if (before == 0) != (before + change == 0):
            for listener in self._listeners:
                listener(f"models/{model}", before == 0)


def _ignore(_: Resident) -> None:
    pass
