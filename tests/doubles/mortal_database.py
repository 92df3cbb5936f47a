"""A database whose server process dies at a chosen transaction: right before it is committed, or right after."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from headrace_server.database.database import Database
from sqlalchemy.ext.asyncio import AsyncConnection


class PowerCut(OSError):
    """What a process that is dead by now would have seen."""


class MortalDatabase(Database):
    """From its death on nothing is written any more; who owns it is dead too and does not know yet."""

    num_writes = 0
    dies_at: int | None = None
    """The number of the transaction; None: it lives."""
    is_committed_at_death = False
    is_dead = False

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction, or the last that the process ever sees."""
        if self.is_dead:
            raise PowerCut("dead")
        self.num_writes += 1
        is_last = self.num_writes == self.dies_at
        if is_last and not self.is_committed_at_death:
            self.is_dead = True
            raise PowerCut("died before the commit")
        async with super().write() as connection:
            yield connection
        if is_last:
            self.is_dead = True
            raise PowerCut("died after the commit")
