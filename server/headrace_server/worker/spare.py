"""A trainer that is started ahead of its job, and the wait of its agent for one.

The server that started the agent hands the job over on standard input: one line, the folder of the assignment.  Until
then the agent belongs to that server, and ends when it is gone; from then on it belongs to the job.
"""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace_server.worker.process_tree import ProcessTree
from headrace_server.worker.trainer_process import WaitingTrainer


@dataclass(frozen=True, slots=True)
class SpareTrainer:
    """A trainer without a job, and the tree that it is the root of."""

    trainer: WaitingTrainer
    tree: ProcessTree

    @classmethod
    def start(cls, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> "SpareTrainer":
        """Start one in the calling thread.  Raises OSError."""
        tree = ProcessTree()
        trainer = WaitingTrainer.start(command, folder, environment)
        tree.root(trainer.process.pid)
        return cls(trainer, tree)


async def wait_for_folder(spare: SpareTrainer) -> Path | None:
    """The folder of the assignment; None when there will be none: the server is gone, or the trainer is."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    gone = asyncio.Event()
    descriptor = os.pidfd_open(spare.trainer.process.pid)
    loop.add_reader(descriptor, gone.set)
    reading, ending = asyncio.ensure_future(reader.readline()), asyncio.ensure_future(gone.wait())
    try:
        await asyncio.wait((reading, ending), return_when=asyncio.FIRST_COMPLETED)
        line = reading.result().decode().removesuffix("\n") if reading.done() else ""
        return Path(line) if line else None
    finally:
        reading.cancel()
        ending.cancel()
        await asyncio.wait((reading, ending))
        loop.remove_reader(descriptor)
        os.close(descriptor)
        transport.close()
