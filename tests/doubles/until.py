"""Waits for a fact, with a deadline, where nothing rings a bell for it."""

import asyncio
from collections.abc import Callable


async def until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    """Return once `is_so()` holds.  Raises TimeoutError after so many seconds."""
    async with asyncio.timeout(seconds):
        while not is_so():  # noqa: ASYNC110 - facts about processes and files ring no bell
            await asyncio.sleep(0.01)
