"""`python -m headrace_server.worker FOLDER`: the agent of the attempt whose assignment lies in the folder.

With `--wait SLOT` it keeps a trainer ready, and waits for the name of the folder on standard input; see `spare.py`.

Exit codes: 0 the server keeps everything that was reported; 1 it does not, or wants nothing of it; 2 there is no
assignment to work on.  SIGTERM and SIGINT end the attempt with a checkpoint.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO, cast

import structlog
from pydantic import ValidationError

from headrace_server.launchers.process import clean_environment
from headrace_server.launchers.processes import MARK
from headrace_server.launchers.warm_pool import WAIT
from headrace_server.storage.local import LocalBlobStore
from headrace_server.training.assignment import ASSIGNMENT_FILE, Assignment
from headrace_server.worker.agent import Agent, Ways
from headrace_server.worker.own_log import LossyText, shorten
from headrace_server.worker.process_tree import become_subreaper
from headrace_server.worker.spare import SpareTrainer, wait_for_folder

SHORTEN_SECONDS = 10.0


def main(arguments: Sequence[str], ways: Ways | None = None) -> int:
    """Work on the assignment in the folder that the only argument names, or that is named later with `--wait`."""
    if len(arguments) == 2 and arguments[0] == WAIT:
        _log_to_standard_error()
        become_subreaper()
        return asyncio.run(_wait(Path(arguments[1]).resolve(), ways or Ways()))
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m headrace_server.worker FOLDER\n")
        return 2
    _log_to_standard_error()
    become_subreaper()
    return asyncio.run(_work(Path(arguments[0]), ways))


async def _wait(slot: Path, ways: Ways) -> int:
    """Keep a trainer ready until there is a job for it, or nobody who could have one."""
    environment = {**clean_environment(os.environ), MARK: str(slot)}
    spare = SpareTrainer.start(ways.trainer_command, slot, environment)
    try:
        folder = await wait_for_folder(spare)
        if folder is None:
            return 0
        os.chdir(folder)
        return await _work(folder, ways, spare)
    finally:
        await asyncio.to_thread(spare.tree.kill)
        # Not before: a trainer that is still loading stands in it, and libraries ask where they are.
        await asyncio.to_thread(shutil.rmtree, slot, ignore_errors=True)


async def _work(folder: Path, ways: Ways | None, spare: SpareTrainer | None = None) -> int:
    try:
        assignment = Assignment.model_validate_json((folder / ASSIGNMENT_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        sys.stderr.write(f"{folder / ASSIGNMENT_FILE}: {error}\n")
        return 2
    store = LocalBlobStore(assignment.store_root)  # the server has opened it: one that is away is not made anew
    agent = Agent(assignment, folder, store, ways, spare)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.leave)
    shortening = asyncio.ensure_future(_keep_log_short())
    try:
        return 0 if await agent.run() else 1
    finally:
        shortening.cancel()


async def _keep_log_short() -> None:
    while True:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(shorten, sys.stderr.fileno())
        await asyncio.sleep(SHORTEN_SECONDS)


def _log_to_standard_error() -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", LossyText(sys.stderr))),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
