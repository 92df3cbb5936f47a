"""A database whose server process dies at a chosen transaction, before or after its commit, or whose disk is full."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Connection

from headrace_server.database.database import Database
from headrace_server.errors import StorageFull

R = TypeVar("R")


class PowerCut(OSError):
    """What a process that is dead by now would have seen."""


class MortalDatabase(Database):
    """From its death on nothing is written any more; who owns it is dead too and does not know yet."""

    num_writes = 0
    dies_at: int | None = None
    """The number of the transaction; None: it lives."""
    is_committed_at_death = False
    is_dead = False
    is_full = False
    """Whether the disk has no room for any transaction."""

    async def transact(self, work: Callable[[Connection], R]) -> R:
        """A transaction, or the last that the process ever sees."""
        with self._counted():
            return await super().transact(work)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self.is_dead:
            raise PowerCut("dead")
        if self.is_full:
            raise StorageFull(0)
        self.num_writes += 1
        is_last = self.num_writes == self.dies_at
        if is_last and not self.is_committed_at_death:
            self.is_dead = True
            raise PowerCut("died before the commit")
        yield
        if is_last:
            self.is_dead = True
            raise PowerCut("died after the commit")
