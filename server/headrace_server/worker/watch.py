"""Looks after one trainer from its start to the proof that nothing of it is left.

Passes on what it reports, obeys orders to stop it, and gathers the evidence of its end.  Knows no connection and no
store.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import structlog

from headrace_server.trainers.job_file import JobFile
from headrace_server.trainers.reports import (
    CheckpointWritten,
    ExportWritten,
    Failed,
    Finished,
    Stopped,
    WarningRaised,
)
from headrace_server.training.session import ReportContent
from headrace_server.worker.memory_counters import MemoryCounters
from headrace_server.worker.orders import Orders
from headrace_server.worker.outbox import Outbox
from headrace_server.worker.output import Output
from headrace_server.worker.process_tree import ProcessTree
from headrace_server.worker.race import race
from headrace_server.worker.trainer_process import TRAINER_COMMAND, Garbage, TrainerProcess

EXIT_SECONDS = 20.0
"""How long a trainer may take to exit after its last report."""
DRAIN_SECONDS = 5.0
"""How long its pipes may take to run dry after every process that held them is gone."""
REAP_SECONDS = 30.0
"""How often orphans that have ended are taken note of."""
MOST_GARBAGE_TOLD = 10

LastWord: TypeAlias = Finished | Stopped | Failed

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TrainerStart:
    """How to start a trainer."""

    folder: Path
    """Its working folder."""
    job_file: Callable[[int], JobFile]
    """Its job file, given the number of the descriptor for reports."""
    environment: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = TRAINER_COMMAND
    exit_seconds: float = EXIT_SECONDS


@dataclass(frozen=True, slots=True)
class Ending:
    """How a trainer ended."""

    last_word: LastWord | None
    exit_code: int
    """Negative: the number of a signal."""
    was_stopped: bool
    """True when it was killed because it was ordered to stop, and did not in time."""
    out_of_memory: bool
    num_killed: int
    last_lines: tuple[str, ...]


class Watch:
    """The watch over one trainer; `run` is called once."""

    def __init__(
        self,
        start: TrainerStart,
        orders: Orders,
        outbox: Outbox,
        publish: Callable[[CheckpointWritten | ExportWritten], None],
        counters: MemoryCounters | None = None,
    ) -> None:
        self._start = start
        self._orders = orders
        self._outbox = outbox
        self._publish = publish
        self._counters = counters or MemoryCounters()
        self._output = Output(outbox)
        self._last_word: LastWord | None = None
        self._last_word_at = math.inf
        self._num_garbage = 0
        self.trainer_pid = 0
        """The trainer's process group while it runs; 0 otherwise."""

    async def run(self, started: Callable[[int], None] = lambda pid: None) -> Ending:
        """Start the trainer and return when it is gone, with all that it had started.

        Raises OSError when it cannot be started, CannotKill when something of it cannot be ended.  Cancelled, it kills.
        """
        tree = ProcessTree()
        killed_before = await asyncio.to_thread(self._counters.num_killed)
        try:
            trainer = await TrainerProcess.start(
                self._start.command, self._start.job_file, self._start.folder, self._start.environment, self._output
            )
        except BaseException:
            await _to_the_end(asyncio.to_thread(tree.kill))
            raise
        try:
            tree.root(trainer.pid)
            trainer.ended.add_done_callback(lambda _: self._orders.ring())
            self.trainer_pid = trainer.pid
            await asyncio.to_thread(started, trainer.pid)
            log.info("watch.trainer_started", pid=trainer.pid)
            was_stopped, num_killed = await self._until_over(trainer, tree)
        finally:
            # Whatever went wrong, nothing of the trainer stays.
            await _to_the_end(_end(trainer, tree))
            self.trainer_pid = 0
        killed_after = await asyncio.to_thread(self._counters.num_killed)
        went_wrong = not was_stopped and not isinstance(self._last_word, (Finished, Stopped))
        ending = Ending(
            last_word=self._last_word,
            exit_code=trainer.ended.result(),
            was_stopped=was_stopped,
            out_of_memory=went_wrong and (killed_after or 0) > (killed_before or 0),
            num_killed=num_killed,
            last_lines=self._output.last_lines,
        )
        log.info("watch.trainer_ended", exit_code=ending.exit_code, last_word=self._last_word and self._last_word.kind)
        return ending

    async def _until_over(self, trainer: TrainerProcess, tree: ProcessTree) -> tuple[bool, int]:
        """Return when the trainer's tree is gone and its pipes are dry; see `_until_ended`."""
        async with asyncio.TaskGroup() as tasks:
            pumps = [tasks.create_task(self._output.pump()), tasks.create_task(self._listen(trainer))]
            ended = await self._until_ended(trainer, tree)
            _, late = await asyncio.wait(pumps, timeout=DRAIN_SECONDS)
            for pump in late:
                pump.cancel()
        return ended

    async def _until_ended(self, trainer: TrainerProcess, tree: ProcessTree) -> tuple[bool, int]:
        """Return when the trainer's tree is gone: whether an order killed it, and how many had to be killed."""
        loop = asyncio.get_running_loop()
        was_told = False
        while True:
            bell = self._orders.bell  # taken before looking, so that no ring is missed
            if trainer.ended.done():
                return False, await asyncio.to_thread(tree.clear)
            if self._orders.is_given and not was_told:
                was_told = True
                trainer.stop()
            now = loop.time()
            must_end_at = min(self._orders.deadline, self._last_word_at + self._start.exit_seconds)
            if must_end_at <= now:
                num_killed = await asyncio.to_thread(tree.kill)
                log.warning("watch.trainer_killed", processes=num_killed)
                return self._orders.deadline <= now, num_killed
            await race(bell.wait(), seconds=min(must_end_at - now, REAP_SECONDS))
            await asyncio.to_thread(tree.reap)

    async def _listen(self, trainer: TrainerProcess) -> None:
        async for reports in trainer.reports():
            passing: list[ReportContent] = []  # passed on together, for speed
            for report in reports:
                match report:
                    case Garbage() | CheckpointWritten() | ExportWritten() | Finished() | Stopped() | Failed():
                        await self._pass_on(passing)
                        passing = []
                        await self._take(report)
                    case _:
                        passing.append(report)
            await self._pass_on(passing)

    async def _take(self, report: Garbage | CheckpointWritten | ExportWritten | LastWord) -> None:
        match report:
            case Garbage():
                await self._note_garbage(report.text)
            case CheckpointWritten() | ExportWritten():
                self._publish(report)
            case _:
                self._last_word = report
                self._last_word_at = asyncio.get_running_loop().time()
                self._orders.ring()

    async def _pass_on(self, reports: Sequence[ReportContent]) -> None:
        if not reports:
            return
        try:
            await self._outbox.add(reports)
        except ValueError as error:
            if len(reports) > 1:
                for report in reports:
                    await self._pass_on([report])
            else:
                await self._note_garbage(f"not a report: {error}")

    async def _note_garbage(self, text: str) -> None:
        """What the trainer said means nothing.  It goes on; if it then ends without a last word, this is evidence."""
        self._num_garbage += 1
        if self._num_garbage > MOST_GARBAGE_TOLD:
            return
        self._output.remember(text)
        await self._outbox.say(text)
        if self._num_garbage == 1:
            message = f"the trainer wrote something that is no report to its report pipe: {text}"
            await self._outbox.add([WarningRaised(code="NOT_A_REPORT", message=message)])


async def _end(trainer: TrainerProcess, tree: ProcessTree) -> None:
    """Kill what is left and give the pipes back."""
    try:
        await asyncio.to_thread(tree.kill)
        async with asyncio.timeout(DRAIN_SECONDS):
            await asyncio.shield(trainer.ended)  # dead already; the loop has yet to take note
    finally:
        trainer.close()


async def _to_the_end(act: Coroutine[Any, Any, object]) -> None:
    """Await `act`; a cancellation does not keep it from ending."""
    acting = asyncio.ensure_future(act)
    try:
        await asyncio.shield(acting)
    except asyncio.CancelledError:
        await acting
        raise
