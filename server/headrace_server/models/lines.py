"""What the registry remembers of models between calls, so that a prediction need not ask the database.

A line (the newest version and the aliases of one model) is forgotten or replaced whenever it may have changed, and not
remembered when it was read while a change was under way: what is remembered is never older than the last answered
change.  Versions never change.  Belongs to the event loop.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from headrace_server.models.serving import ServingOptions
from headrace_server.models.version import ModelVersion

MOST_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Line:
    """Where the names of one model point, and how its versions are served."""

    latest_version: int
    aliases: dict[str, int]
    serving: ServingOptions = field(default_factory=ServingOptions)

    def find(self, alias: str | None) -> int | None:
        """The version of an alias; without one, that of "default", else the newest."""
        if alias is not None:
            return self.aliases.get(alias)
        return self.aliases.get("default", self.latest_version)


@dataclass(slots=True)
class Change:
    """One change that is under way.  Whoever makes it says what the line is afterwards, as soon as he knows."""

    line: Line | None = None


class Lines:
    """The models and versions that were asked for last."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[str], None]] = []
        self._lines: OrderedDict[str, Line] = OrderedDict()
        self._versions: OrderedDict[tuple[str, int], ModelVersion] = OrderedDict()
        self._changes: dict[str, int] = {}
        self._num_changes = 0

    def line(self, model: str) -> Line | None:
        """The line of a model, if it is remembered."""
        line = self._lines.get(model)
        if line is not None:
            self._lines.move_to_end(model)
        return line

    def look(self, model: str) -> Line | None:
        """The line of a model, if it is remembered; not for answering anybody."""
        return self._lines.get(model)

    def watch(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with a model's id whenever its line was remembered, was replaced or is no longer known.

        It is called in the moment in which that happens: nobody can have asked in between.
        """
        self._listeners.append(listener)

    def version(self, model: str, number: int) -> ModelVersion | None:
        """A version, if it is remembered."""
        version = self._versions.get((model, number))
        if version is not None:
            self._versions.move_to_end((model, number))
        return version

    @property
    def moment(self) -> int:
        """To be taken before a line is read from the database, and given to `remember`."""
        return self._num_changes

    def remember(self, model: str, line: Line, moment: int) -> None:
        """Keep a line that was read since `moment`, unless something has changed, or is changing, meanwhile."""
        if moment == self._num_changes and model not in self._changes:
            self._keep(model, line)

    def remember_version(self, version: ModelVersion) -> None:
        """Keep a version."""
        self._versions[version.model, version.version] = version
        if len(self._versions) > MOST_REMEMBERED:
            self._versions.popitem(last=False)

    @contextmanager
    def changing(self, model: str) -> Iterator[Change]:
        """Around everything that may change a line, however it ends."""
        moment = self._num_changes
        self._changes[model] = self._changes.get(model, 0) + 1
        change = Change()
        try:
            yield change
        finally:
            self._changes[model] -= 1
            if not self._changes[model]:
                del self._changes[model]
            is_newest = moment == self._num_changes and model not in self._changes
            self._num_changes += 1
            if change.line is not None and is_newest:
                self._keep(model, change.line)
            else:
                self._forget(model)

    def _keep(self, model: str, line: Line) -> None:
        self._lines[model] = line
        self._tell(model)
        if len(self._lines) > MOST_REMEMBERED:
            oldest, _ = self._lines.popitem(last=False)
            self._tell(oldest)

    def _forget(self, model: str) -> None:
        if self._lines.pop(model, None) is not None:
            self._tell(model)

    def _tell(self, model: str) -> None:
        for listener in self._listeners:
            listener(model)
