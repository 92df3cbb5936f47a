"""Readers of a journal: each sees each sequence exactly once and in order, whatever happens around it."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given, settings, strategies as st

from headrace_server.errors import CursorAhead, CursorExpired, Draining, InvalidSpec
from headrace_server.training.journal import CACHED_PAGES, PAGE_ENTRIES, TAIL_ENTRIES, Journal
from tests.doubles.until import until

QUIET = 30.0


@dataclass(frozen=True, slots=True)
class Entry:
    sequence: int


class Shelf:
    """The durable side of a journal: a list, and a count of how often it was read."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.oldest = 1
        self.has_ended = False
        self.num_reads = 0
        self.journal = self.reopen()

    def reopen(self) -> Journal[Entry]:
        """What a new process sees."""
        self.journal = Journal(self.read, oldest=self.oldest, latest=len(self.entries), has_ended=self.has_ended)
        return self.journal

    async def read(self, after: int, up_to: int) -> Sequence[Entry]:
        """A page, after a moment."""
        self.num_reads += 1
        await asyncio.sleep(0)
        return [entry for entry in self.entries[after:up_to] if entry.sequence >= self.oldest]

    def append(self, count: int, *, ends: bool = False) -> None:
        """Commit, then show."""
        new = [Entry(len(self.entries) + number) for number in range(1, count + 1)]
        self.entries += new
        self.has_ended = self.has_ended or ends
        self.journal.publish(new, oldest=self.oldest, has_ended=ends)

    def prune(self, before: int) -> None:
        """Forget the oldest entries, together with nothing new."""
        self.oldest = max(self.oldest, min(before, len(self.entries) + 1))
        self.journal.publish([], oldest=self.oldest, has_ended=False)


async def read_all(journal: Journal[Entry], after: int = 0) -> list[int]:
    return [entry.sequence async for entry in journal.follow(after, QUIET) if entry is not None]


async def test_a_reader_sees_what_is_there_and_what_comes_until_the_end() -> None:
    shelf = Shelf()
    shelf.append(3)
    reading = asyncio.ensure_future(read_all(shelf.journal))
    await asyncio.sleep(0)
    shelf.append(2)
    await asyncio.sleep(0)
    shelf.append(1, ends=True)

    assert await reading == [1, 2, 3, 4, 5, 6]
    assert await read_all(shelf.journal, after=4) == [5, 6]
    assert await read_all(shelf.journal, after=6) == []


@pytest.mark.parametrize("count", [PAGE_ENTRIES - 1, PAGE_ENTRIES, PAGE_ENTRIES + 1, 5 * PAGE_ENTRIES + 7])
async def test_history_older_than_memory_is_read_in_pages(count: int) -> None:
    shelf = Shelf()
    shelf.append(count, ends=True)
    journal = shelf.reopen()

    assert await read_all(journal) == list(range(1, count + 1))
    assert await read_all(journal, count // 2) == list(range(count // 2 + 1, count + 1))


async def test_readers_share_the_pages_that_they_read() -> None:
    shelf = Shelf()
    shelf.append(6 * PAGE_ENTRIES, ends=True)
    journal = shelf.reopen()

    seen = await asyncio.gather(*(read_all(journal) for _ in range(50)))

    assert all(sequences == list(range(1, 6 * PAGE_ENTRIES + 1)) for sequences in seen)
    assert shelf.num_reads == 6


async def test_memory_is_bounded_however_long_the_history() -> None:
    shelf = Shelf()
    for _ in range(200):
        shelf.append(100)
    journal = shelf.journal
    reading = asyncio.ensure_future(read_all(journal))
    shelf.append(1, ends=True)
    await reading

    assert len(journal._tail) <= 2 * TAIL_ENTRIES
    assert len(journal._pages) <= CACHED_PAGES


async def test_a_slow_reader_slows_nobody() -> None:
    shelf = Shelf()
    shelf.append(1)
    gate = asyncio.Event()

    async def read_slowly() -> list[int]:
        seen = []
        async for entry in shelf.journal.follow(0, QUIET):
            assert entry is not None
            seen.append(entry.sequence)
            await gate.wait()
        return seen

    slow = asyncio.ensure_future(read_slowly())
    fast = asyncio.ensure_future(read_all(shelf.journal))
    for _ in range(50):
        shelf.append(100)
        await asyncio.sleep(0)
    shelf.append(1, ends=True)

    assert await fast == list(range(1, 5003))
    assert not slow.done()
    gate.set()
    assert await slow == list(range(1, 5003))


async def test_quiet_time_is_told_and_does_not_disturb_the_order() -> None:
    shelf = Shelf()
    shelf.append(1)
    seen: list[int | None] = []

    async def follow() -> None:
        async for entry in shelf.journal.follow(0, 0.02):
            seen.extend([None if entry is None else entry.sequence])

    reading = asyncio.ensure_future(follow())
    await until(lambda: seen.count(None) >= 2)
    shelf.append(1, ends=True)
    await reading

    assert [sequence for sequence in seen if sequence is not None] == [1, 2]
    assert seen[:3] == [1, None, None]


async def test_cursors_outside_of_history_are_refused() -> None:
    shelf = Shelf()
    shelf.append(10)
    shelf.prune(before=5)

    with pytest.raises(CursorAhead) as ahead:
        await read_all(shelf.journal, after=11)
    with pytest.raises(CursorExpired) as expired:
        await read_all(shelf.journal, after=3)
    with pytest.raises(InvalidSpec):
        await read_all(shelf.journal, after=-1)

    assert ahead.value.metadata == {"after_sequence": "11", "latest_sequence": "10"}
    assert expired.value.metadata == {"after_sequence": "3", "oldest_sequence": "5"}


async def test_zero_means_from_the_oldest_that_is_kept() -> None:
    shelf = Shelf()
    shelf.append(10)
    shelf.prune(before=5)
    shelf.append(1, ends=True)

    assert await read_all(shelf.journal) == [5, 6, 7, 8, 9, 10, 11]
    assert await read_all(shelf.journal, after=4) == [5, 6, 7, 8, 9, 10, 11]
    assert await read_all(shelf.reopen()) == [5, 6, 7, 8, 9, 10, 11]


async def test_a_reader_that_falls_behind_what_is_kept_is_told() -> None:
    shelf = Shelf()
    shelf.append(3 * TAIL_ENTRIES)
    reader = shelf.journal.follow(0, QUIET)
    first = await anext(reader)
    shelf.prune(before=3 * TAIL_ENTRIES)

    with pytest.raises(CursorExpired):
        await _exhaust(reader)
    assert first == Entry(1)


async def test_pruning_between_the_look_and_the_read_begins_again_at_the_oldest() -> None:
    shelf = Shelf()
    shelf.append(10, ends=True)
    shelf.reopen()
    shelf.oldest = 5  # removed, and not shown yet
    reading = asyncio.ensure_future(read_all(shelf.journal))
    await until(lambda: shelf.num_reads == 1)
    await asyncio.sleep(0)
    shelf.prune(before=5)

    assert await reading == [5, 6, 7, 8, 9, 10]


async def test_draining_ends_readers_with_the_place_to_resume_after() -> None:
    shelf = Shelf()
    shelf.append(3)
    seen: list[int] = []

    async def follow() -> None:
        async for entry in shelf.journal.follow(0, QUIET):
            assert entry is not None
            seen.append(entry.sequence)

    reading = asyncio.ensure_future(follow())
    await until(lambda: seen == [1, 2, 3])
    shelf.journal.drain()

    with pytest.raises(Draining) as draining:
        await reading
    assert draining.value.metadata == {"resume_after": "3"}


async def test_draining_does_not_wait_for_a_reader_that_has_all_history_before_it() -> None:
    shelf = Shelf()
    shelf.append(3 * TAIL_ENTRIES)
    journal = shelf.reopen()
    reader = journal.follow(0, QUIET)
    await anext(reader)
    journal.drain()

    with pytest.raises(Draining) as draining:
        await _exhaust(reader)
    assert int(draining.value.metadata["resume_after"]) <= PAGE_ENTRIES


async def _exhaust(reader: AsyncIterator[Entry | None]) -> None:
    async for _ in reader:
        pass


async def test_an_ended_history_is_read_to_its_end_even_while_draining() -> None:
    shelf = Shelf()
    shelf.append(3)
    shelf.append(1, ends=True)
    shelf.journal.drain()

    assert await read_all(shelf.journal) == [1, 2, 3, 4]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_interleaving_shows_each_reader_each_sequence_once_and_in_order(data: st.DataObject) -> None:
    asyncio.run(_interleave(data))


async def _interleave(data: st.DataObject) -> None:
    world = _World(data)
    for step in data.draw(st.lists(st.sampled_from(sorted(_World.STEPS)), max_size=40)):
        await _World.STEPS[step](world)
    await world.end()


class _World:
    """Appends, prunings, restarts of the server, and readers that come, go and resume."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self._shelf = Shelf()
        self._readers: list[_Reader] = []

    async def append(self) -> None:
        self._shelf.append(self._data.draw(st.integers(1, 700)))

    async def prune(self) -> None:
        self._shelf.prune(self._data.draw(st.integers(1, len(self._shelf.entries) + 1)))

    async def restart(self) -> None:
        for reader in self._readers:
            await reader.leave()
        self._shelf.reopen()

    async def come(self) -> None:
        self._readers.append(_Reader(self._shelf, self._data.draw(st.integers(0, len(self._shelf.entries)))))
        self._readers[-1].come()

    async def go(self) -> None:
        if self._readers:
            await self._data.draw(st.sampled_from(self._readers)).leave()

    async def resume(self) -> None:
        if self._readers:
            reader = self._data.draw(st.sampled_from(self._readers))
            await reader.leave()
            reader.come()

    async def rest(self) -> None:
        for _ in range(self._data.draw(st.integers(1, 5))):
            await asyncio.sleep(0)

    async def end(self) -> None:
        for reader in self._readers:
            if reader.is_away:
                reader.come()
        self._shelf.append(1, ends=True)
        for reader in self._readers:
            await reader.finish()
            reader.check(len(self._shelf.entries))

    STEPS: ClassVar = {
        "append": append, "prune": prune, "restart": restart, "come": come, "go": go, "resume": resume, "rest": rest,
    }  # fmt: skip


class _Reader:
    """Reads until it leaves, and resumes after what it saw last."""

    def __init__(self, shelf: Shelf, after: int) -> None:
        self._shelf = shelf
        self._start = after
        self._after = after
        self._seen: list[int] = []
        self._expired = False
        self._task: asyncio.Task[None] | None = None

    @property
    def is_away(self) -> bool:
        return self._task is None

    def come(self) -> None:
        if not self._expired:
            self._task = asyncio.get_running_loop().create_task(self._read(self._shelf.journal))

    async def leave(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def finish(self) -> None:
        if self._task is not None:
            async with asyncio.timeout(20):
                await self._task

    def check(self, latest: int) -> None:
        first = self._seen[0] if self._seen else 0
        assert self._seen == list(range(first, first + len(self._seen)))
        if self._start > 0 and self._seen:
            assert first == self._start + 1
        if not self._expired:
            assert self._after == latest

    async def _read(self, journal: Journal[Entry]) -> None:
        try:
            async for entry in journal.follow(self._after, QUIET):
                assert entry is not None
                self._seen.append(entry.sequence)
                self._after = entry.sequence
        except CursorExpired:
            assert self._after < self._shelf.oldest - 1
            self._expired = True


async def test_two_hundred_readers_of_which_twenty_reconnect_each_see_every_event_once() -> None:
    shelf = Shelf()
    total = 5000
    chance = random.Random(7)

    async def follow(reconnects: bool) -> list[int]:
        seen: list[int] = []
        while not seen or seen[-1] < total:
            stop_at = len(seen) + chance.randint(1, 700) if reconnects else None
            async for sequence in _sequences(shelf.journal, seen[-1] if seen else 0):
                seen.append(sequence)
                if len(seen) == stop_at:
                    break
        return seen

    readers = [asyncio.ensure_future(follow(number < 20)) for number in range(200)]
    while len(shelf.entries) < total:
        shelf.append(min(chance.randint(1, 60), total - len(shelf.entries)))
        await asyncio.sleep(0)
    shelf.append(0, ends=True)

    async with asyncio.timeout(60):
        for seen in await asyncio.gather(*readers):
            assert seen == list(range(1, total + 1))


async def _sequences(journal: Journal[Entry], after: int) -> AsyncIterator[int]:
    async for entry in journal.follow(after, QUIET):
        assert entry is not None
        yield entry.sequence
