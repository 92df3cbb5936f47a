"""A stream with a cursor that outlives its connections: when one breaks, the next goes on where the reader is.

Knows no frame's meaning: the reader keeps the cursor, and says where the stream is complete.  A server that drains
names a sequence to resume after; the reader's own is used all the same, for a broken connection can lose what was sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc

from headrace.ending import Wish
from headrace.errors import HeadraceError, Unavailable
from headrace.wire import Wire

FrameT = TypeVar("FrameT")


@dataclass(frozen=True, slots=True)
class Interruption:
    """A stream broke and will be opened again."""

    error: HeadraceError
    """Why it broke."""
    wait_seconds: float
    """How long until the next try."""
    failures: int
    """Tries since anything new arrived, this one included."""


class Position(Protocol):
    """Where the reader of a stream is."""

    @property
    def sequence(self) -> int:
        """The last entry that was read."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow."""
        ...


async def read_resuming(
    wire: Wire,
    connect: Callable[[int], grpc.aio.UnaryStreamCall[Any, FrameT]],
    position: Position,
    on_interruption: Callable[[Interruption], None] | None = None,
) -> AsyncGenerator[FrameT, None]:
    """Yield the frames of `connect(position.sequence)`, and again of a new connection each time one breaks.

    Ends when a stream ends well and the position is complete.  Raises the error that broke the stream when opening it
    again cannot help, or when nothing new has arrived for `retry.reconnect_seconds`.
    """
    retry = wire.retry
    progress_at, failures = retry.clock.monotonic(), 0
    wish = Wish()
    while True:
        before = position.sequence
        try:
            async with aclosing(_read_connection(wire, connect(position.sequence), retry.silence_seconds)) as frames:
                is_greeting = True  # a server that falls over after its first frame has not come back
                async for frame in frames:
                    yield frame
                    if position.sequence > before or not is_greeting:
                        progress_at, failures, before = retry.clock.monotonic(), 0, position.sequence
                    is_greeting = False
            if position.is_complete:
                return
            raise Unavailable("the stream ended before the job did")
        except HeadraceError as error:
            wish.check()
            failures += 1
            wait = retry.wait_before_resume(failures, error)
            if wait is None or retry.clock.monotonic() + wait - progress_at > retry.reconnect_seconds:
                raise
            if on_interruption is not None:
                on_interruption(Interruption(error, wait, failures))
            await retry.clock.sleep(wait)


async def _read_connection(
    wire: Wire, call: grpc.aio.UnaryStreamCall[Any, FrameT], silence_seconds: float
) -> AsyncGenerator[FrameT, None]:
    async with aclosing(wire.read(call)) as frames:
        while True:
            try:
                async with asyncio.timeout(silence_seconds):
                    frame = await anext(frames, None)
            except HeadraceError:
                raise  # DeadlineExceeded is a TimeoutError too, but one that the server sent
            except TimeoutError as error:
                raise Unavailable(f"the server has been silent for {silence_seconds:.0f} s") from error
            if frame is None:
                return
            yield frame
