"""Tasks with an owner: those that must not be cut in half when their caller leaves, and those that run until the end.

Knows nothing of what they do.
"""

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, TypeVar

import structlog

T = TypeVar("T")

log = structlog.get_logger()


class OwnedTasks:
    """The tasks of one owner, who closes them all."""

    def __init__(self) -> None:
        self._finishing: set[asyncio.Task[Any]] = set()
        self._running: set[asyncio.Task[Any]] = set()

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work` to its end even when the caller is cancelled meanwhile; returns its result, or raises its error."""
        task = asyncio.get_running_loop().create_task(work)
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_report)
            raise

    def run(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run `work` until it ends or the owner closes; what it raises is logged."""
        # In a context of its own: it outlives the call that began it, and its log lines are not that call's.
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(_report)
        return task

    async def close(self) -> None:
        """Cancel what runs, and wait for it and for everything that must be finished.

        Has no limit of its own: what must be finished is bounded by what it does, as a transaction is by the database.
        """
        while self._running or self._finishing:
            for task in self._running:
                task.cancel()
            await asyncio.wait([*self._running, *self._finishing])


def _report(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("training.task_failed", task=repr(task.get_coro()), exc_info=error)
