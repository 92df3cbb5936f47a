"""Looks after the trainers of one attempt from their start to the proof that nothing of them is left.

Passes on what they report, obeys orders to stop them, and gathers the evidence of their end.  Knows no connection
and no store.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import structlog

from headrace_server.trainers.reports import (
    CheckpointWritten,
    ExportWritten,
    Failed,
    Finished,
    ProfileCommand,
    ProfileWritten,
    Ready,
    StopCommand,
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
from headrace_server.worker.trainer_process import Garbage
from headrace_server.worker.world import TrainerStart, World

BROKEN_SECONDS = 3.0
"""How long other ranks may go on after one has ended without a word: what it said last may still be unread."""
DRAIN_SECONDS = 5.0
"""How long its pipes may take to run dry after every process that held them is gone."""
REAP_SECONDS = 30.0
"""How often orphans that have ended are taken note of."""
MOST_GARBAGE_TOLD = 10

LastWord: TypeAlias = Finished | Stopped | Failed

log = structlog.get_logger()


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
        publish: Callable[[CheckpointWritten | ExportWritten | ProfileWritten], None],
        counters: MemoryCounters | None = None,
        tree: ProcessTree | None = None,
    ) -> None:
        """`tree` holds a trainer that was started ahead of its job."""
        self._start = start
        self._tree = tree
        self._orders = orders
        self._outbox = outbox
        self._publish = publish
        self._counters = counters or MemoryCounters()
        self._output = Output(outbox)
        self._last_word: LastWord | None = None
        self._last_word_at = math.inf
        self._num_garbage = 0
        self._world: World | None = None

    @property
    def trainer_pid(self) -> int:
        """The process group of the first trainer while it runs; 0 otherwise."""
        return 0 if self._world is None else self._world.pid

    def profile(self, num_steps: int) -> None:
        """Have the next steps recorded, where a trainer runs."""
        if self._world is not None:
            self._world.command(ProfileCommand(num_steps=num_steps))

    async def run(self, started: Callable[[int], None] = lambda pid: None) -> Ending:
        """Start the trainer and return when it is gone, with all that it had started.

        Raises OSError when it cannot be started, CannotKill when something of it cannot be ended.  Cancelled, it kills.
        """
        tree = self._tree or ProcessTree()
        killed_before = await asyncio.to_thread(self._counters.num_killed)
        try:
            world = await World.start(self._start, self._output, tree, self._orders.ring)
        except BaseException:
            await _to_the_end(asyncio.to_thread(tree.kill))
            raise
        try:
            self._world = world
            await asyncio.to_thread(started, world.pid)
            log.info("watch.trainer_started", pid=world.pid, ranks=len(world.ranks))
            was_stopped, num_killed = await self._until_over(world, tree)
        finally:
            # Whatever went wrong, nothing of the trainer stays.
            await _to_the_end(_end(world, tree))
            self._world = None
        if culprit := world.describe_culprit():
            self._output.remember(culprit)
        # What other ranks say when one is gone is only how they noticed.
        last_word = None if world.culprit is not None and len(world.ranks) > 1 else self._last_word
        killed_after = await asyncio.to_thread(self._counters.num_killed)
        went_wrong = not was_stopped and not isinstance(last_word, (Finished, Stopped))
        ending = Ending(
            last_word=last_word,
            exit_code=world.exit_code,
            was_stopped=was_stopped,
            out_of_memory=went_wrong and (killed_after or 0) > (killed_before or 0),
            num_killed=num_killed,
            last_lines=self._output.last_lines,
        )
        log.info("watch.trainer_ended", exit_code=ending.exit_code, last_word=last_word and last_word.kind)
        return ending

    async def _until_over(self, world: World, tree: ProcessTree) -> tuple[bool, int]:
        """Return when the trainer's tree is gone and its pipes are dry; see `_until_ended`."""
        async with asyncio.TaskGroup() as tasks:
            pumps = [tasks.create_task(self._output.pump())]
            pumps += [tasks.create_task(self._listen(world, index)) for index in range(len(world.ranks))]
            ended = await self._until_ended(world, tree)
            _, late = await asyncio.wait(pumps, timeout=DRAIN_SECONDS)
            for pump in late:
                pump.cancel()
        return ended

    async def _until_ended(self, world: World, tree: ProcessTree) -> tuple[bool, int]:
        """Return when the trainer's tree is gone: whether an order killed it, and how many had to be killed."""
        loop = asyncio.get_running_loop()
        was_told = False
        broken_at = math.inf
        while True:
            bell = self._orders.bell  # taken before looking, so that no ring is missed
            if world.has_ended:
                return False, await asyncio.to_thread(tree.clear)
            if self._orders.is_given and not was_told:
                was_told = True
                world.command(StopCommand())
            now = loop.time()
            broken_at = min(broken_at, now) if world.culprit is not None else math.inf
            must_end_at = min(
                self._orders.deadline, self._last_word_at + self._start.exit_seconds, broken_at + BROKEN_SECONDS
            )
            if must_end_at <= now:
                world.absolve()
                num_killed = await asyncio.to_thread(tree.kill)
                log.warning("watch.trainer_killed", processes=num_killed)
                return self._orders.deadline <= now, num_killed
            await race(bell.wait(), seconds=min(must_end_at - now, REAP_SECONDS))
            await asyncio.to_thread(tree.reap)

    async def _listen(self, world: World, index: int) -> None:
        """Hear one rank.  All but the first only warn, and say how they ended."""
        rank = world.rank_of(index)
        async for reports in world.ranks[index].reports():
            passing: list[ReportContent] = []  # passed on together, for speed
            for report in reports:
                match report:
                    case Finished() | Stopped() | Failed():
                        await self._pass_on(passing)
                        passing = []
                        world.note_last_word(index)
                        self._take_last_word(report, rank)
                    case Ready():
                        continue  # it was waited for by nobody: the job was there before, or it is by now
                    case WarningRaised():
                        passing.append(report)
                    case _ if index > 0:
                        continue
                    case Garbage():
                        await self._pass_on(passing)
                        passing = []
                        await self._note_garbage(report.text)
                    case CheckpointWritten() | ExportWritten() | ProfileWritten():
                        await self._pass_on(passing)
                        passing = []
                        self._publish(report)
                    case _:
                        passing.append(report)
            await self._pass_on(passing)

    def _take_last_word(self, word: LastWord, rank: int) -> None:
        """The first failure counts; otherwise the first rank speaks for all."""
        if isinstance(self._last_word, Failed) or (rank > 0 and not isinstance(word, Failed)):
            self._orders.ring()
            return
        if rank > 0 and isinstance(word, Failed):
            word = word.model_copy(update={"message": f"rank {rank}: {word.message}"})
        self._last_word = word
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


async def _end(world: World, tree: ProcessTree) -> None:
    """Kill what is left and give the pipes back."""
    world.absolve()
    try:
        await asyncio.to_thread(tree.kill)
        await world.wait_until_noted(DRAIN_SECONDS)
    finally:
        world.close()


async def _to_the_end(act: Coroutine[Any, Any, object]) -> None:
    """Await `act`; a cancellation does not keep it from ending."""
    acting = asyncio.ensure_future(act)
    try:
        await asyncio.shield(acting)
    except asyncio.CancelledError:
        await acting
        raise
