"""Waits for the first of several things."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def race(*acts: Coroutine[Any, Any, Any], seconds: float | None = None) -> int | None:
    """Return the place of the first of `acts` that ends; None when none does in so many seconds.

    The others are cancelled, and have ended when this returns.  What the first one raises is raised.
    """
    tasks: list[asyncio.Task[Any]] = [asyncio.ensure_future(act) for act in acts]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for place, task in enumerate(tasks):
            if task.done():
                task.result()
                return place
        return None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
