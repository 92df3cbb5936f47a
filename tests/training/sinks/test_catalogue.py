from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from headrace_server.errors import CannotStart
from headrace_server.settings import SinkSettings
from headrace_server.training.sinks import catalogue
from headrace_server.training.sinks.catalogue import GROUP, prepare_sinks
from tests.doubles.scripted_sink import ScriptedSink

SINK = ScriptedSink()
KIND = SINK.kind
NOT_A_KIND = 7


def plugin(attribute: str, name: str = "mine") -> EntryPoint:
    return EntryPoint(name, f"tests.training.sinks.test_catalogue:{attribute}", GROUP)


def settings(kind: str, **options: Any) -> SinkSettings:
    return SinkSettings.model_validate({"kind": kind, "options": options})


async def test_a_package_brings_a_kind_of_its_own() -> None:
    ((_, thread),) = prepare_sinks([settings("mine")], [plugin("KIND")])

    assert SINK.num_opened == 0, "a stranger's code runs in its thread alone"
    await thread.close(1)


@pytest.mark.parametrize(
    ("one", "problem"),
    [
        (settings("nobody"), r"there is no kind 'nobody'; there are mine, mlflow, tensorboard"),
        (settings("mine", extra=1), r"options of 'mine' .* extra: Extra inputs are not permitted"),
        (settings("mlflow"), r"options of 'mlflow' .* url: Field required"),
        (settings("mlflow", url="ftp://there"), r"url: String should match"),
        (settings("tensorboard", folder=["x"]), r"options of 'tensorboard' .* folder"),
    ],
)
def test_a_sink_that_cannot_be_had_keeps_the_server_from_starting(one: SinkSettings, problem: str) -> None:
    with pytest.raises(CannotStart, match=problem):
        prepare_sinks([one], [plugin("KIND")])


@pytest.mark.parametrize("attribute", ["NOT_A_KIND", "NOTHING"])
def test_an_entry_point_that_leads_to_no_kind_is_told_by_its_name(attribute: str) -> None:
    with pytest.raises(CannotStart, match="mine"):
        prepare_sinks([settings("mine")], [plugin(attribute)])


def test_a_kind_whose_packages_are_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalogue.BUILT_IN, "mlflow", "headrace_server.no_such_module:KIND")

    with pytest.raises(CannotStart, match=r"pip install 'headrace-server\[mlflow\]'"):
        prepare_sinks([settings("mlflow", url="http://127.0.0.1:5000")], [])


def test_the_built_in_kinds_open_what_they_say(tmp_path: Path) -> None:
    ready = prepare_sinks([settings("mlflow", url="http://127.0.0.1:5000"), settings("tensorboard", folder=tmp_path)])

    assert [one.name for one, _ in ready] == ["mlflow", "tensorboard"]
