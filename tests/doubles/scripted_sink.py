"""A sink that remembers what it was told, and is away, refuses, hangs or raises when a test says so."""

import threading
from collections.abc import Callable

from headrace_server.training.sinks.sink import Batch, Entry, Options, SinkKind, SinkRefused, SinkUnavailable


class ScriptedSink:
    """Keeps everything in memory, across the servers that open it."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        """What it has kept."""
        self.num_calls = 0
        self.num_opened = 0
        self.num_closed = 0
        self.is_away = False
        self.refuses: Callable[[Batch], bool] = lambda batch: False
        self.raises: Exception | None = None
        self.dies_after_keeping = False
        """Whether it keeps a batch, and then fails to say so."""
        self.goes_on = threading.Event()
        self.goes_on.set()
        self._turn = threading.Lock()

    @property
    def kind(self) -> SinkKind:
        """As an entry point would lead to it."""
        return SinkKind("scripted", Options, self._open)

    def entries(self, job: str) -> list[Entry]:
        """Everything it was told of one job."""
        return [entry for batch in list(self.batches) if batch.run.id == job for entry in batch.entries]

    def sequences(self, job: str) -> list[int]:
        """Their places in the job's history."""
        return [entry.sequence for entry in self.entries(job)]

    def write(self, batch: Batch) -> None:
        """Keep it, unless the script says otherwise."""
        assert self._turn.acquire(blocking=False), "two calls at the same time"
        try:
            self.num_calls += 1
            self.goes_on.wait()
            if self.is_away:
                raise SinkUnavailable("away")
            if self.refuses(batch):
                raise SinkRefused("not these")
            if self.raises is not None:
                raise self.raises
            self.batches.append(batch)
            if self.dies_after_keeping:
                raise SinkUnavailable("the answer was lost")
        finally:
            self._turn.release()

    def close(self) -> None:
        """Count it."""
        self.num_closed += 1

    def _open(self, options: Options) -> "ScriptedSink":
        self.num_opened += 1
        return self
