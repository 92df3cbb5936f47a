"""Which families of trainers there are: those that come with the server, and those installed beside it.

Knows no torch: families are described without it, and their code is loaded by trainer processes only.  A package adds a
family through the entry point group `headrace.trainers`; one that cannot be loaded is logged and listed as unavailable,
and never keeps the server from starting.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

import structlog

from headrace_server.trainers.family import Family, Parameters
from headrace_server.trainers.image_classification.parameters import IMAGE_CLASSIFICATION
from headrace_server.trainers.tabular.parameters import TABULAR

GROUP = "headrace.trainers"
BUILT_IN = (TABULAR, IMAGE_CLASSIFICATION)

log = structlog.get_logger()


class Families:
    """All families by name; settled when it is made."""

    def __init__(self, built_in: Sequence[Family] = BUILT_IN, plugins: Iterable[EntryPoint] | None = None) -> None:
        self._families = {family.name: family for family in built_in}
        self._unavailable: dict[str, str] = {}
        for plugin in entry_points(group=GROUP) if plugins is None else plugins:
            self._add(plugin)

    @property
    def unavailable(self) -> Mapping[str, str]:
        """Why each plug-in that is installed but cannot be used cannot be, by entry point name."""
        return MappingProxyType(self._unavailable)

    def get(self, name: str) -> Family | None:
        """The family of that name, if there is one."""
        return self._families.get(name)

    def list(self) -> Sequence[Family]:
        """All families by name."""
        return sorted(self._families.values(), key=lambda family: family.name)

    def _add(self, plugin: EntryPoint) -> None:
        try:
            family = _checked(plugin.load())
            if family.name in self._families:
                raise ValueError(f"there is a trainer {family.name!r} already")
        except (Exception, SystemExit) as error:  # a stranger's code may raise anything
            self._unavailable[plugin.name] = f"{type(error).__name__}: {error}"
            log.error("trainers.plugin_unavailable", plugin=plugin.name, code=plugin.value, exc_info=True)
        else:
            self._families[family.name] = family


def _checked(loaded: object) -> Family:
    """The family that an entry point led to, marked as a plug-in.  Raises TypeError or ValueError if it is not one."""
    if not isinstance(loaded, Family):
        raise TypeError(f"the entry point must lead to a Family, not to {type(loaded).__name__}")
    if not issubclass(loaded.parameters, Parameters):
        raise TypeError("Family.parameters must be a subclass of Parameters")
    if not loaded.name or not loaded.metrics or ":" not in loaded.code:
        raise ValueError("a family needs a name, at least one metric, and code of the form package.module:function")
    loaded.parameters.model_json_schema()  # shown to callers, so it must be possible
    return dataclasses.replace(loaded, is_plugin=True)
