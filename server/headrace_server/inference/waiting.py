"""The parts that wait for one model, by group, each group in the order of priority and arrival.

Knows no threads and no clock.  Parts that are withdrawn are skipped when their turn comes; when more than half of a
group is such, it is rebuilt, so that callers who come and go cannot make it grow.
"""

import heapq
from dataclasses import dataclass, field

from headrace_server.inference.batch import Group, Part, Stage


@dataclass(slots=True)
class _Queue:
    parts: list[Part] = field(default_factory=list)
    withdrawn: int = 0
    rows: int = 0
    nbytes: int = 0


class WaitingRoom:
    """Counts what waits, and says what is next."""

    def __init__(self) -> None:
        self._queues: dict[Group, _Queue] = {}
        self.rows = 0
        self.nbytes = 0
        self._rows_of_priority: dict[int, int] = {}

    def add(self, part: Part) -> None:
        """Let a part wait."""
        queue = self._queues.get(part.group)
        if queue is None:
            queue = self._queues[part.group] = _Queue()
        heapq.heappush(queue.parts, part)
        self._count(queue, part, 1)

    def withdraw(self, part: Part) -> None:
        """Let go of a part that waits; it becomes OVER and its inputs are dropped."""
        assert part.stage is Stage.WAITING
        queue = self._queues[part.group]
        part.stage, part.inputs = Stage.OVER, {}
        self._count(queue, part, -1)
        queue.withdrawn += 1
        if queue.withdrawn * 2 > len(queue.parts):
            queue.parts = [waiting for waiting in queue.parts if waiting.stage is Stage.WAITING]
            heapq.heapify(queue.parts)
            queue.withdrawn = 0
            if not queue.parts:
                del self._queues[part.group]

    def first(self) -> Part | None:
        """The part whose turn it is; None when nothing waits."""
        heads = [head for group in list(self._queues) if (head := self.first_of(group)) is not None]
        return min(heads, default=None)

    def first_of(self, group: Group) -> Part | None:
        """The next part of a group; None when it has none."""
        queue = self._queues.get(group)
        if queue is None:
            return None
        while queue.parts and queue.parts[0].stage is not Stage.WAITING:
            heapq.heappop(queue.parts)
            queue.withdrawn -= 1
        if not queue.parts:
            del self._queues[group]
            return None
        return queue.parts[0]

    def take(self, part: Part) -> None:
        """Take the part that `first_of` its group has just returned."""
        queue = self._queues[part.group]
        taken = heapq.heappop(queue.parts)
        assert taken is part
        part.stage = Stage.RUNNING
        self._count(queue, part, -1)
        if not queue.parts:
            del self._queues[part.group]

    def size_of(self, group: Group) -> tuple[int, int]:
        """Rows and bytes that wait in a group."""
        queue = self._queues.get(group)
        return (queue.rows, queue.nbytes) if queue is not None else (0, 0)

    def earliest_deadline(self, group: Group) -> float | None:
        """The earliest deadline in a group; costs a look at each of its parts."""
        queue = self._queues.get(group)
        deadlines = [
            part.ticket.deadline for part in (queue.parts if queue is not None else ()) if part.stage is Stage.WAITING
        ]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def rows_ahead_of(self, priority: int) -> int:
        """Rows that would be computed before a new part of this priority."""
        return sum(rows for other, rows in self._rows_of_priority.items() if other >= priority)

    def all(self) -> list[Part]:
        """Every part that waits, in no order."""
        return [part for queue in self._queues.values() for part in queue.parts if part.stage is Stage.WAITING]

    @property
    def num_kept(self) -> int:
        """Parts in memory, withdrawn ones included."""
        return sum(len(queue.parts) for queue in self._queues.values())

    def _count(self, queue: _Queue, part: Part, sign: int) -> None:
        rows, nbytes, priority = sign * part.rows, sign * part.nbytes, part.ticket.priority
        self.rows += rows
        self.nbytes += nbytes
        queue.rows += rows
        queue.nbytes += nbytes
        remaining = self._rows_of_priority.get(priority, 0) + rows
        if remaining:
            self._rows_of_priority[priority] = remaining
        else:
            self._rows_of_priority.pop(priority, None)
