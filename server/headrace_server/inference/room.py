"""What versions take of the memory of a device, and whether there is room for one more.

Memory is measured when a version is loaded; only until then it is expected.  Who must leave so that another fits is
decided by `moves.py`; who sees it off is somebody else.  Belongs to the event loop.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from headrace_server.errors import DeviceOutOfMemory
from headrace_server.inference.moves import Held, Load, Refuse, Unload, Wait, next_move
from headrace_server.inference.slot import Key, Slot
from headrace_server.memory import Ledger
from headrace_server.models.version import ModelVersion

MOST_SIZES = 1024

T = TypeVar("T")


class Room:
    """The places of at most `max_held` versions, those that are being opened or closed included."""

    def __init__(
        self,
        ledger: Ledger,
        slots: Callable[[], Sequence[Slot]],
        withdraw: Callable[[Slot], None],
        *,
        max_held: int,
        expected_bytes: Callable[[ModelVersion], int],
        occupied: Callable[[int], None],
    ) -> None:
        """`slots` are those with a place of their own; `withdraw` begins to see one off.

        `expected_bytes` guesses what a version takes that was never loaded before.  `occupied` hears how many places
        are taken, whenever that changes.
        """
        self._ledger = ledger
        self._slots = slots
        self._withdraw = withdraw
        self._max_held = max_held
        self._expected_bytes = expected_bytes
        self._tell_occupied = occupied
        self._others: dict[object, Held] = {}
        self._num_occupied = 0
        self._bell = asyncio.Event()
        self._sizes: OrderedDict[Key, int] = OrderedDict()
        self.pinned: set[str] = set()
        """The ids of models whose versions stay, however long nobody asks for them."""

    async def make(self, slot: Slot) -> None:
        """Wait until a version may be loaded, having others leave where that helps.  Raises DeviceOutOfMemory."""
        slot.nbytes = self._sizes.get(slot.version.key) or self._expected_bytes(slot.version)
        await self._make(slot.nbytes, self._held, self._ledger.free_bytes, self._max_held)
        slot.has_room = True
        self._occupy()

    async def make_beside(self, slot: Slot, nbytes: int) -> object:
        """The same for so much beside what a version has already: for a while both are in memory.

        Nobody leaves for it who is in use, and the number of versions does not count: there will be no more of them.
        Returns the token of its place.  Raises DeviceOutOfMemory.
        """
        await self._make(nbytes, lambda: self._held(slot, in_use_stay=True), self._ledger.free_bytes)
        token = object()
        self._others[token] = Held(nbytes, is_loading=True)
        self._occupy()
        return token

    async def make_for_job(self, nbytes: int) -> int:
        """Have versions leave that nobody uses until a training job may take so much; returns what is missing then."""

        def free(_: int, expected_bytes: int) -> int:
            return self._ledger.free_for_jobs(expected_bytes)

        try:
            await self._make(nbytes, lambda: self._held(in_use_stay=True), free)
        except DeviceOutOfMemory as error:
            return error.missing_bytes or 0
        return 0

    async def measured(self, opening: Awaitable[T]) -> tuple[T, int]:
        """What opening makes, and the memory that it took.  Raises what it raises."""
        growth = self._ledger.begin()
        try:
            opened = await opening
        finally:
            taken = self._ledger.end(growth)
        return opened, taken

    def idle_on(self, device: str) -> list[Slot]:
        """Who takes memory of a device ("cuda:0") and may leave it at once, the least recently used first."""
        return [
            slot
            for slot in sorted(self._slots(), key=lambda slot: slot.last_used_at)
            if slot.resident is not None
            and not slot.resident.is_in_use
            and slot.version.model not in self.pinned
            and any(one.device == device for one in slot.resident.provenances)
        ]

    def remember(self, slot: Slot, nbytes: int) -> None:
        """A version takes so much, as measured."""
        slot.nbytes = self._sizes[slot.version.key] = nbytes
        if len(self._sizes) > MOST_SIZES:
            self._sizes.popitem(last=False)

    def is_leaving(self, token: object, nbytes: int) -> None:
        """What has this token leaves, and takes so much until `leave`."""
        self._others[token] = Held(nbytes, is_leaving=True)

    def settle(self, token: object) -> None:
        """What had a place beside another has taken the other's."""
        del self._others[token]

    def leave(self, token: object = None) -> None:
        """A place is free: that of this token, or of a slot that is none any more."""
        self._others.pop(token, None)
        self._num_occupied -= 1
        self._tell_occupied(self._num_occupied)
        self.ring()

    def ring(self) -> None:
        """Something has changed that makes it worth looking again."""
        self._bell.set()
        self._bell = asyncio.Event()

    def _occupy(self) -> None:
        self._num_occupied += 1
        self._tell_occupied(self._num_occupied)

    async def _make(
        self,
        wanted_bytes: int,
        look: Callable[[], list[tuple[Held, Slot | None]]],
        free_bytes: Callable[[int, int], int],
        max_held: int | None = None,
    ) -> None:
        """`free_bytes` gets the bytes of what is loaded, and of what is being loaded."""
        while True:
            bell = self._bell  # taken before looking, so that no ring is missed
            free = await asyncio.to_thread(free_bytes, *_sums(look()))
            held = look()  # it may have changed meanwhile; memory that was taken meanwhile is expected, not free
            most = len(held) + 1 if max_held is None else max_held
            match next_move([one for one, _ in held], wanted_bytes, free, most):
                case Load():
                    return
                case Unload(index):
                    victim = held[index][1]
                    assert victim is not None
                    self._withdraw(victim)
                case Wait():
                    await bell.wait()
                case Refuse(missing_bytes):
                    raise DeviceOutOfMemory("cpu", missing_bytes=missing_bytes)

    def _held(self, stays: Slot | None = None, *, in_use_stay: bool = False) -> list[tuple[Held, Slot | None]]:
        """What takes memory, the least recently used first, with its slot; None for what has none.

        `stays` never leaves, and with `in_use_stay` nothing does that calls use.
        """
        held: list[tuple[Held, Slot | None]] = [
            (self._hold(slot, stays=slot is stays, in_use_stays=in_use_stay), slot)
            for slot in sorted(self._slots(), key=lambda slot: slot.last_used_at)
            if slot.has_room
        ]
        return [*held, *((one, None) for one in self._others.values())]

    def _hold(self, slot: Slot, *, stays: bool, in_use_stays: bool) -> Held:
        is_in_use = slot.resident is not None and slot.resident.is_in_use
        return Held(
            slot.nbytes,
            is_pinned=stays or slot.version.model in self.pinned or (in_use_stays and is_in_use),
            is_in_use=is_in_use,
            is_loading=slot.resident is None,
        )


def _sums(held: list[tuple[Held, Slot | None]]) -> tuple[int, int]:
    """The bytes of what is loaded, and of what is being loaded."""
    loading = sum(one.nbytes for one, _ in held if one.is_loading)
    return sum(one.nbytes for one, _ in held) - loading, loading
