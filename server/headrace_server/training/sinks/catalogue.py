"""Which kinds of sinks there are, and what the settings make of them.

The built-in kinds need packages that not everybody installs, so each is imported only when it is asked for.
"""

import importlib
from collections.abc import Iterable, Sequence
from functools import partial
from importlib.metadata import EntryPoint, entry_points

from pydantic import ValidationError

from headrace_server.errors import CannotStart
from headrace_server.settings import SinkSettings
from headrace_server.training.sinks.sink import Options, SinkKind
from headrace_server.training.sinks.thread import SinkThread

GROUP = "headrace.sinks"
BUILT_IN = {
    "mlflow": "headrace_server.training.sinks.mlflow:MLFLOW",
    "tensorboard": "headrace_server.training.sinks.tensorboard:TENSORBOARD",
}


def prepare_sinks(
    settings: Sequence[SinkSettings], plugins: Iterable[EntryPoint] | None = None
) -> list[tuple[SinkSettings, SinkThread]]:
    """The sinks that an operator asked for, none of which is opened yet.

    Raises CannotStart when one cannot be had: a sink that silently kept nothing would be missed too late.
    """
    known = list(entry_points(group=GROUP)) if plugins is None else list(plugins)
    return [(one, _prepare(one, known)) for one in settings]


def _prepare(settings: SinkSettings, plugins: Sequence[EntryPoint]) -> SinkThread:
    kind = _find(settings.kind, plugins)
    try:
        options = kind.options.model_validate(settings.options)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'options'}: {problem['msg']}" for problem in error.errors()
        )
        raise CannotStart(
            f"training.sinks: the options of {settings.name!r} are not those of {kind.name}: {problems}"
        ) from error
    return SinkThread(settings.name, partial(kind.open, options))


def _find(name: str, plugins: Sequence[EntryPoint]) -> SinkKind:
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            raise CannotStart(f"training.sinks: {name} needs more: pip install 'headrace-server[{name}]'") from error
    else:
        plugin = next((plugin for plugin in plugins if plugin.name == name), None)
        if plugin is None:
            kinds = ", ".join(sorted({*BUILT_IN, *(plugin.name for plugin in plugins)}))
            raise CannotStart(f"training.sinks: there is no kind {name!r}; there are {kinds}")
        try:
            found = plugin.load()
        except (Exception, SystemExit) as error:  # a stranger's code may raise anything
            raise CannotStart(f"training.sinks: {name} ({plugin.value}) cannot be loaded: {error!r}") from error
    if not isinstance(found, SinkKind) or not issubclass(found.options, Options):
        raise CannotStart(f"training.sinks: the entry point {name} must lead to a SinkKind, not to {found!r:.100}")
    return found
