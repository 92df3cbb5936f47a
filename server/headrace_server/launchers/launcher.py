"""Starts the agents of jobs and makes sure that they are gone.  Knows nothing of what an agent does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Formation:
    """Where an agent stands among those of the same attempt, when its ranks are on several machines."""

    num_nodes: int = 1
    node: int = 0
    """Counted from 0."""
    rendezvous: str = ""
    """"host:port" where the ranks meet, which belongs to node 0; empty: they are all on one machine and choose."""


class CannotLaunch(Exception):
    """An agent could not be started; trying again may help.  Internal: it never reaches a caller."""


class CannotKill(Exception):
    """Processes of an attempt are still there although they were killed, for example in an unending disk access.

    Internal: it never reaches a caller.  Calling `kill` again is the cure.
    """

    def __init__(self, pids: list[int]) -> None:
        super().__init__(f"killed, but still there: {', '.join(map(str, pids))}")
        self.pids = pids


class Launcher(Protocol):
    """Where agents run."""

    def form(self, job: str, attempt: int, num_ranks: int) -> Formation:
        """Where the agent that `launch` is about to start will stand; raises CannotLaunch where there is no room."""
        ...

    async def launch(self, job: str, attempt: int, folder: Path) -> None:
        """Start `python -m headrace_server.worker <folder>`; the folder holds its `assignment.json`.

        Returns once the agent's process exists; whether it attaches is seen elsewhere.  Raises CannotLaunch.
        """
        ...

    async def ending(self, job: str, attempt: int, folder: Path) -> str | None:
        """How the agent's process ended, for people: "exited with code 1"; None while it runs, or may still run.

        Also of agents that a server before this one has launched.  Cheap enough to be asked twice a second.
        """
        ...

    async def wait(self, job: str, attempt: int, folder: Path, seconds: float) -> bool:
        """Let an agent that is about to end do so, at most this long; whether it has."""
        ...

    async def kill(self, job: str, attempt: int, folder: Path, trainer_pid: int) -> int:
        """Make sure that the agent, its trainer and all that either has started are gone.

        Also those that a server before this one has launched.  `trainer_pid` is the trainer's process group as the
        agent last named it; 0 when it never did.  Returns how many processes had to be killed; 0 when all were gone.
        Raises CannotKill when some survive that.
        """
        ...
