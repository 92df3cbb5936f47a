"""Every name that means a version which is ready, told to a door that answers by itself.

A route is told of before anybody can know that it is there, and taken back before it is gone: before an alias is
answered for, before a version is unloaded.  Belongs to the event loop; knows nothing of doors.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from headrace_server.inference.resident import Resident
from headrace_server.models.lines import Line
from headrace_server.models.snapshot import Snapshot
from headrace_server.models.version import ModelVersion
from headrace_server.names import ModelName
from headrace_server.pages import LARGEST_PAGE_SIZE
from headrace_server.tensors import DataType


@dataclass(frozen=True, slots=True)
class Route:
    """What one name means."""

    name: ModelName
    resident: Resident
    numbers: range
    """The versions that are listed under the name, or the newest of many."""


Publish = Callable[[Sequence[Route]], None]


class Routes:
    """The names of the versions that are ready."""

    def __init__(self, line: Callable[[str], Line | None]) -> None:
        """`line` says where the names of a model point, or None while that is not known."""
        self._line = line
        self._residents: dict[str, dict[int, Resident]] = {}
        self._listeners: list[Publish] = []

    def watch(self, listener: Publish) -> None:
        """Call `listener` with all routes now, and again whenever one of them changes."""
        self._listeners.append(listener)
        listener([*self._all()])

    def add(self, resident: Resident) -> None:
        """A version is ready."""
        version = resident.version
        if is_routable(version):
            self._residents.setdefault(version.model, {})[version.version] = resident
            self._publish()

    def remove(self, resident: Resident) -> None:
        """A version is about to leave."""
        version = resident.version
        ready = self._residents.get(version.model, {})
        if ready.get(version.version) is resident:
            del ready[version.version]
            if not ready:
                del self._residents[version.model]
            self._publish()

    def line_changed(self, model: str) -> None:
        """What the names of a model mean has changed, or is not known any more."""
        if model in self._residents:
            self._publish()

    def _publish(self) -> None:
        for listener in self._listeners:
            listener([*self._all()])

    def _all(self) -> Iterator[Route]:
        for model, ready in self._residents.items():
            line = self._line(model)
            if line is not None and line.serving.cache.is_enabled:
                continue  # its answers may be kept, which the door knows nothing of
            for number, resident in ready.items():
                yield Route(ModelName(model, number), resident, range(number, number + 1))
            if line is not None:
                yield from _routes_of(model, line, ready)


def is_routable(version: ModelVersion) -> bool:
    """Whether calls of a version can be answered from their bytes alone; the checkpoint of a job changes too often."""
    signature = version.signature
    specs = (*signature.inputs, *signature.outputs)
    if isinstance(version, Snapshot):
        return False
    return bool(signature.inputs) and all(spec.data_type is not DataType.STRING for spec in specs)


def _routes_of(model: str, line: Line, ready: dict[int, Resident]) -> Iterator[Route]:
    numbers = range(max(1, line.latest_version - LARGEST_PAGE_SIZE + 1), line.latest_version + 1)
    for alias in (None, *line.aliases):
        number = line.find(alias)
        resident = ready.get(number) if number is not None else None
        if resident is not None:
            yield Route(ModelName(model, alias=alias), resident, numbers)
