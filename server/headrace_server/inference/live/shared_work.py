"""Work that several callers wait for, and that none of them ends by leaving.

A failure is told to everybody who asks for a while, before the work is tried again.  Belongs to the event loop.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from headrace_server.errors import HeadraceError, Unavailable
from headrace_server.inference.errands import Errands

KeyT = TypeVar("KeyT", bound=Hashable)
ResultT = TypeVar("ResultT")
MOST_FAILURES = 256


class SharedWork(Generic[KeyT, ResultT]):
    """At most one piece of work under way for each key."""

    def __init__(self, errands: Errands, clock: Callable[[], float], failure_seconds: float) -> None:
        """A failure is remembered for `failure_seconds`, except one that says itself when to come again."""
        self._errands = errands
        self._clock = clock
        self._failure_seconds = failure_seconds
        self._under_way: dict[KeyT, asyncio.Task[ResultT | HeadraceError]] = {}
        self._failures: OrderedDict[KeyT, tuple[HeadraceError, float]] = OrderedDict()

    async def result(self, key: KeyT, work: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
        """What `work` returns, begun now or by somebody before.  Raises the HeadraceError that it raises."""
        failure, until = self._failures.get(key, (None, 0.0))
        if failure is not None and self._clock() < until:
            raise failure.with_traceback(None)  # else it would grow with each caller
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = self._errands.start(self._do(key, work))
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        outcome = await asyncio.shield(task)
        if isinstance(outcome, HeadraceError):
            raise outcome.with_traceback(None)
        return outcome

    async def _do(self, key: KeyT, work: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT | HeadraceError:
        try:
            return await work()
        except HeadraceError as error:
            if not isinstance(error, Unavailable):
                self._failures[key] = (error, self._clock() + self._failure_seconds)
                if len(self._failures) > MOST_FAILURES:
                    self._failures.popitem(last=False)
            return error
