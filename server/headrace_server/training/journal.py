"""The readers' side of one history: any number of readers, each with its own cursor, over durable numbered entries.

What is new is shared by all readers in memory; what is older is read in pages, which readers share as well.  There is
no queue per reader: a slow one costs nobody anything, and a reader that goes leaves nothing behind.  Knows neither jobs
nor the database: whoever commits entries publishes them here afterwards.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

from headrace_server.errors import CursorAhead, CursorExpired, Draining, InvalidSpec, Violation

PAGE_ENTRIES = 256
CACHED_PAGES = 8
TAIL_ENTRIES = 1024


class Numbered(Protocol):
    """Anything with a place in a history."""

    @property
    def sequence(self) -> int:
        """1 for the first, then one more each."""
        ...


EntryT = TypeVar("EntryT", bound=Numbered)

ReadPage = Callable[[int, int], Awaitable[Sequence[EntryT]]]
"""Given `after` and `up_to`, returns the kept entries with after < sequence <= up_to, in order."""


class Journal(Generic[EntryT]):
    """One history as its readers share it.  Holds a bounded number of entries in memory, however long it is."""

    def __init__(self, read_page: ReadPage[EntryT], *, oldest: int, latest: int, has_ended: bool) -> None:
        self.oldest = oldest
        """The sequence of the oldest entry that is kept; one past `latest` when there is none."""
        self.latest = latest
        """The sequence of the newest entry; 0 before the first."""
        self.num_readers = 0
        self._read_page = read_page
        self._has_ended = has_ended
        self._is_draining = False
        self._tail: list[EntryT] = []  # the entries up to `latest`, without gaps
        self._pages: OrderedDict[int, Sequence[EntryT]] = OrderedDict()
        self._turn = asyncio.Lock()  # one page is read at a time, by whoever wants it first
        self._bell = asyncio.Event()

    def publish(self, entries: Sequence[EntryT], *, oldest: int, has_ended: bool) -> None:
        """Show entries that are durable by now.  `oldest` is what is kept of the history after them."""
        if entries:
            if entries[0].sequence != self.latest + 1:
                self._tail.clear()  # something durable was never shown here: readers find it in the pages
            self._tail.extend(entries)
            self.latest = entries[-1].sequence
            if len(self._tail) > 2 * TAIL_ENTRIES:
                del self._tail[:-TAIL_ENTRIES]
        self.oldest = oldest
        self._has_ended = self._has_ended or has_ended
        self._ring()

    def drain(self) -> None:
        """End every reader with Draining as soon as it has seen what is in memory."""
        self._is_draining = True
        self._ring()

    async def follow(self, after: int, quiet_seconds: float) -> AsyncIterator[EntryT | None]:
        """Yield every entry after the cursor, in order, each exactly once; 0 begins with the oldest that is kept.

        Yields None whenever nothing came for `quiet_seconds`.  Ends after the last entry of a history that has ended.
        Raises InvalidSpec, CursorAhead, CursorExpired (also later, when a reader falls behind what is kept), Draining.
        """
        if after < 0:
            raise InvalidSpec([Violation("after_sequence", "must not be negative")])
        if after > self.latest:
            raise CursorAhead(after, self.latest)
        while True:
            bell = self._bell  # taken before looking, so that no ring is missed
            for entry in await self._next_entries(after):
                yield entry
                after = entry.sequence
            if self._has_more_for(after):
                continue
            if self._has_ended and after >= self.latest:
                return
            if self._is_draining:
                raise Draining(after)
            try:
                async with asyncio.timeout(quiet_seconds):
                    await bell.wait()
            except TimeoutError:
                yield None

    def _has_more_for(self, after: int) -> bool:
        return 0 < after < self.latest and not self._is_beyond_drain(after)

    async def _next_entries(self, after: int) -> Sequence[EntryT]:
        """Some entries for a reader with this cursor; none when it has seen all.  Raises CursorExpired."""
        if after >= self.latest or self._is_beyond_drain(after):
            return ()
        if after > 0:
            return await self._entries_after(after)
        try:
            return await self._entries_after(self.oldest - 1)
        except CursorExpired:
            return ()  # what was the oldest a moment ago has just been removed; the bell tells when that is known here

    def _is_beyond_drain(self, after: int) -> bool:
        """Whether the server leaves and this reader would still have to read pages: the next server has them too."""
        return self._is_draining and after + 1 < self._tail_start

    @property
    def _tail_start(self) -> int:
        return self.latest - len(self._tail) + 1

    async def _entries_after(self, after: int) -> Sequence[EntryT]:
        """Some of the entries after the cursor, at least one.  Raises CursorExpired."""
        wanted = after + 1
        if wanted < self.oldest:
            raise CursorExpired(after, self.oldest)
        if wanted >= self._tail_start:
            start = wanted - self._tail_start
            return self._tail[start : start + PAGE_ENTRIES]
        number = after // PAGE_ENTRIES
        if not (entries := self._cached(number, wanted)):
            async with self._turn:
                if not (entries := self._cached(number, wanted)):
                    first = number * PAGE_ENTRIES
                    self._keep(number, await self._read_page(first, first + PAGE_ENTRIES))
                    entries = self._cached(number, wanted)
        if not entries:
            raise CursorExpired(after, max(self.oldest, wanted + 1))
        return entries

    def _cached(self, number: int, wanted: int) -> Sequence[EntryT]:
        page = self._pages.get(number)
        if not page or not page[0].sequence <= wanted <= page[-1].sequence:
            return ()
        self._pages.move_to_end(number)
        return page[wanted - page[0].sequence :]

    def _keep(self, number: int, page: Sequence[EntryT]) -> None:
        self._pages[number] = page
        self._pages.move_to_end(number)
        while len(self._pages) > CACHED_PAGES:
            self._pages.popitem(last=False)

    def _ring(self) -> None:
        self._bell.set()
        self._bell = asyncio.Event()
