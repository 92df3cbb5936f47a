"""Why a call really ended, where grpc.aio tells something else.

A call to which we were still writing when the server ended it: the write that fails gives the call a status of its own,
INTERNAL, before or after the server's arrives, and the last one wins.  So each is noted when it is set; the server's is
the one that no failed write made.  The server's may even be OK, when it ended the call before everything was sent.

A call that ends in the moment in which its caller is cancelled: the error is told and the cancellation is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import grpc

_WRITE_FAILED = "Internal error from Core"
_ENDED_EARLY = "the server ended the call before everything was sent"
_TRIES = 100
_PERIOD_SECONDS = 0.01


class Ending:
    """Watches how one call ends.  Must be made before anything is written to it."""

    def __init__(self, call: grpc.aio.Call) -> None:
        self._call = call
        self._noted: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._note)

    async def true_error(self, raised: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """The server's own status where `raised` is that of a failed write; waits a second for it at most.

        UNAVAILABLE when that is OK: nothing went wrong there, but not everything was heard.
        """
        error = await self._servers_own(raised)
        if error.code() is not grpc.StatusCode.OK:
            return error
        return grpc.aio.AioRpcError(
            grpc.StatusCode.UNAVAILABLE, error.initial_metadata(), error.trailing_metadata(), _ENDED_EARLY
        )

    async def _servers_own(self, raised: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        if raised.details() != _WRITE_FAILED:
            return raised
        for _ in range(_TRIES):
            self._note(self._call)
            if self._noted is not None:
                return self._noted
            await asyncio.sleep(_PERIOD_SECONDS)
        return raised

    def _note(self, _: Any) -> None:
        details = _at_once(self._call.details())
        if self._noted is None and details != _WRITE_FAILED:
            self._noted = grpc.aio.AioRpcError(
                _at_once(self._call.code()),
                _at_once(self._call.initial_metadata()),
                _at_once(self._call.trailing_metadata()),
                details,
            )


class Wish:
    """Whether the task that made this still wants what it is doing.  Must be made before the first call."""

    def __init__(self) -> None:
        self._num_cancels = _num_cancels()

    def check(self) -> None:
        """Raise CancelledError if somebody has cancelled the task since."""
        if _num_cancels() > self._num_cancels:
            raise asyncio.CancelledError


def _num_cancels() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def _at_once(answer: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that has nothing to wait for: a status that is set is there at once."""
    try:
        answer.send(None)
    except StopIteration as end:
        return end.value
    answer.close()
    raise AssertionError("a call that is done has a status")
