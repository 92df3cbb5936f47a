"""Thins the steps of a history for readers behind a slow link.  Knows no wire.

Of the steps within a period the newest is kept; it is sent when the period is over, or before the next entry of any
other kind, so that order and the last word are never lost.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from headrace_server.errors import Draining
from headrace_server.trainers.reports import StepCompleted
from headrace_server.training.events import Event

_END: Final = object()


async def thin(events: AsyncIterator[Event | None], period_seconds: float) -> AsyncIterator[Event | None]:
    """Yield what `events` yields, but steps at most once in `period_seconds`."""
    now = asyncio.get_running_loop().time
    coming = _Coming(events)
    held: Event | None = None
    due_at = now()
    try:
        while True:
            if held is not None and not await coming.is_here(within_seconds=due_at - now()):
                yield held
                held, due_at = None, now() + period_seconds
            try:
                event = await coming.take()
            except Draining:
                if held is not None:  # the error says to resume after the newest entry, which is this one
                    yield held
                raise
            if isinstance(event, Event) and isinstance(event.happening, StepCompleted):
                if now() < due_at:
                    held = event
                    continue
                held, due_at = None, now() + period_seconds
            elif held is not None and event is not None:
                yield held
                held, due_at = None, now() + period_seconds
            if event is not None and not isinstance(event, Event):
                return
            yield event
    finally:
        await coming.close()


class _Coming:
    """The next item of an iterator, which can be waited for without being lost when the wait is over first."""

    def __init__(self, events: AsyncIterator[Event | None]) -> None:
        self._events = events
        self._next: asyncio.Task[object] | None = None

    async def is_here(self, within_seconds: float) -> bool:
        """Whether the next item, or the end, comes within this time."""
        done, _ = await asyncio.wait((self._begin(),), timeout=max(0.0, within_seconds))
        return bool(done)

    async def take(self) -> object:
        """The next item; `_END` after the last.  Raises what the iterator raises."""
        item = await self._begin()
        self._next = None
        return item

    async def close(self) -> None:
        """Give up what is under way."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait((self._next,))

    def _begin(self) -> asyncio.Task[object]:
        if self._next is None:
            self._next = asyncio.ensure_future(self._advance())
        return self._next

    async def _advance(self) -> object:
        return await anext(self._events, _END)
