"""The trainer processes of one attempt that train together: one, or several ranks that know each other.

Each rank finds the others as under torchrun: by RANK, WORLD_SIZE, MASTER_ADDR and the other variables of that contract.
Commands go to rank 0, which tells the others; that way all of them stop after the same step.  When one rank ends
without a word the others cannot go on, and wait for it without end: the world is broken then.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from headrace_server.launchers.launcher import Formation
from headrace_server.launchers.processes import name_of_signal
from headrace_server.niceness import be_nice
from headrace_server.trainers.job_file import JobFile
from headrace_server.trainers.reports import ProfileCommand, StopCommand
from headrace_server.worker.output import Output
from headrace_server.worker.ports import free_port
from headrace_server.worker.process_tree import ProcessTree
from headrace_server.worker.trainer_process import TRAINER_COMMAND, TrainerProcess, WaitingTrainer

NICENESS = 10
"""Of a training that gives way: it gets about a tenth of a processor that others want too."""
EXIT_SECONDS = 20.0
"""How long a trainer may take to exit after its last report."""


@dataclass(frozen=True, slots=True)
class TrainerStart:
    """How to start the trainers."""

    folder: Path
    """Their working folder."""
    job_file: Callable[[int], JobFile]
    """The job file, given the number of the descriptor for reports."""
    environment: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = TRAINER_COMMAND
    exit_seconds: float = EXIT_SECONDS
    waiting: WaitingTrainer | None = None
    """A trainer that was started ahead of its job, to be the first rank."""
    gives_way: bool = False
    """Whether they run at a lower priority than others on the CPU."""
    num_ranks: int = 1
    """How many run on this host."""
    formation: Formation = field(default_factory=Formation)


class World:
    """All ranks of one attempt on this host."""

    def __init__(self, ranks: Sequence[TrainerProcess], first_rank: int, on_end: Callable[[], None]) -> None:
        self.ranks = tuple(ranks)
        self._first_rank = first_rank
        self._has_spoken = [False] * len(ranks)
        self._ended: list[int] = []  # by themselves, in order
        self._is_absolved = False
        for index, trainer in enumerate(ranks):
            trainer.ended.add_done_callback(partial(self._note_end, index, on_end))

    @classmethod
    async def start(cls, start: TrainerStart, output: Output, tree: ProcessTree, on_end: Callable[[], None]) -> "World":
        """Start every rank; `on_end` is called at the end of each.  Raises OSError; what was started is in `tree`."""
        formation = start.formation
        first_rank = formation.node * start.num_ranks
        address = formation.rendezvous or f"127.0.0.1:{free_port()}"
        ranks: list[TrainerProcess] = []
        try:
            for local in range(start.num_ranks):
                variables = _rank_variables(first_rank + local, local, start, address)
                if local == 0 and start.waiting is not None:
                    trainer = await TrainerProcess.take(start.waiting, start.job_file, start.folder, output, variables)
                else:
                    environment = {**start.environment, **variables}
                    trainer = await TrainerProcess.start(
                        start.command, start.job_file, start.folder, environment, output, first_rank + local
                    )
                if start.gives_way:
                    await asyncio.to_thread(be_nice, trainer.pid, NICENESS)
                ranks.append(trainer)
                tree.root(trainer.pid)
        except BaseException:
            for trainer in ranks:
                trainer.close()
            raise
        return cls(ranks, first_rank, on_end)

    @property
    def pid(self) -> int:
        """The process group of the first rank."""
        return self.ranks[0].pid

    @property
    def has_ended(self) -> bool:
        """Whether every rank has."""
        return all(trainer.ended.done() for trainer in self.ranks)

    @property
    def culprit(self) -> int | None:
        """The first of `ranks` that has ended by itself without a last word; None when there is none.

        Only good once what it said has been read.
        """
        return next((index for index in self._ended if not self._has_spoken[index]), None)

    @property
    def exit_code(self) -> int:
        """That of the culprit, else that of the first rank.  Only once all have ended."""
        return self.ranks[self.culprit or 0].ended.result()

    def describe_culprit(self) -> str:
        """Which of several ranks ended without a word, and how, for people; empty when none did."""
        if (culprit := self.culprit) is None or len(self.ranks) == 1:
            return ""
        code = self.ranks[culprit].ended.result()
        how = f"was ended by {name}" if (name := name_of_signal(code)) else f"exited with code {code}"
        return f"rank {self.rank_of(culprit)} {how} without a word"

    def rank_of(self, index: int) -> int:
        """The rank of one of `ranks`."""
        return self._first_rank + index

    def note_last_word(self, index: int) -> None:
        """A rank has said its last word."""
        self._has_spoken[index] = True

    def absolve(self) -> None:
        """From now on ranks are ended by us: that is not their fault."""
        self._is_absolved = True

    def command(self, command: StopCommand | ProfileCommand) -> None:
        """Tell the first rank, which tells the others."""
        self.ranks[0].command(command)

    def close(self) -> None:
        """Give all pipes back."""
        for trainer in self.ranks:
            trainer.close()

    async def wait_until_noted(self, seconds: float) -> None:
        """Wait for the loop to take note of the end of ranks that are dead already."""
        async with asyncio.timeout(seconds):
            await asyncio.shield(asyncio.gather(*(trainer.ended for trainer in self.ranks)))

    def _note_end(self, index: int, on_end: Callable[[], None], _: object) -> None:
        if not self._is_absolved:
            self._ended.append(index)
        on_end()


def _rank_variables(rank: int, local: int, start: TrainerStart, address: str) -> dict[str, str]:
    """What torchrun tells its processes; nothing where one trains alone."""
    size = start.formation.num_nodes * start.num_ranks
    if size == 1:
        return {}
    host, _, port = address.rpartition(":")
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(start.num_ranks),
        "GROUP_RANK": str(start.formation.node),
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
    }
