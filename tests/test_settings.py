import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from headrace_server.errors import CannotStart
from headrace_server.settings import Loaded, Settings, load, parse_assignments

NOTHING: Mapping[str, str] = {}


def from_text(tmp_path: Path, text: str, environment: Mapping[str, str] = NOTHING, **argv: Any) -> Loaded:
    (tmp_path / "headrace.toml").write_text(text)
    return load(tmp_path / "headrace.toml", environment, argv)


def test_with_no_source_everything_has_its_default() -> None:
    loaded = load(None, NOTHING, {})

    assert loaded.settings == Settings()
    assert {setting.source for setting in loaded.explain()} == {"default"}
    assert all(setting.description for setting in loaded.explain())


def test_later_sources_win_and_everything_says_where_it_came_from(tmp_path: Path) -> None:
    loaded = load(
        write(tmp_path, "[training]\nqueue_limit = 1\nmax_running_jobs = 1\nkeep_events = 101\n"),
        {"HEADRACE_TRAINING__QUEUE_LIMIT": "2", "HEADRACE_TRAINING__MAX_RUNNING_JOBS": "2"},
        {"training.queue_limit": "3"},
    )

    training = loaded.settings.training
    assert (training.queue_limit, training.max_running_jobs, training.keep_events) == (3, 2, 101)
    sources = {setting.key: setting.source for setting in loaded.explain()}
    assert sources["training.queue_limit"] == "command line"
    assert sources["training.max_running_jobs"] == "HEADRACE_TRAINING__MAX_RUNNING_JOBS"
    assert sources["training.keep_events"] == str(tmp_path / "headrace.toml")
    assert sources["training.keep_log_lines"] == "default"


SINKS = """
[[training.sinks]]
kind = "mlflow"
options = { url = "http://me:secret@there:5000" }

[[training.sinks]]
kind = "mlflow"
name = "other"
"""


def test_sinks_are_a_list_of_tables_and_their_passwords_are_not_shown(tmp_path: Path) -> None:
    loaded = from_text(tmp_path, SINKS)

    sinks = loaded.settings.training.sinks
    assert [(sink.kind, sink.name) for sink in sinks] == [("mlflow", "mlflow"), ("mlflow", "other")]
    (shown,) = [setting for setting in loaded.explain() if setting.key == "training.sinks"]
    assert "secret" not in str(shown.value)
    assert "there:5000" in str(shown.value)


def test_sinks_are_json_where_there_is_only_text() -> None:
    text = '[{"kind": "tensorboard", "options": {"folder": "runs"}}]'

    for loaded in (load(None, {"HEADRACE_TRAINING__SINKS": text}), load(None, NOTHING, {"training.sinks": text})):
        (sink,) = loaded.settings.training.sinks
        assert (sink.kind, sink.options) == ("tensorboard", {"folder": "runs"})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[{", "is not JSON"),
        ('[{"kind": ""}]', r"training.sinks.0.kind"),
        ('[{"kind": "a"}, {"kind": "a"}]', "the same name"),
        ('[{"kind": "a", "colour": 1}]', r"unknown setting training.sinks.0.colour \(from command line\)"),
    ],
)
def test_sinks_that_are_wrong_are_told_by_their_place(text: str, problem: str) -> None:
    with pytest.raises(CannotStart, match=problem):
        load(None, NOTHING, {"training.sinks": text})


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "headrace.toml").write_text(text)
    return tmp_path / "headrace.toml"


KEYS = {setting.key: setting.value for setting in load(None, NOTHING, {}).explain()}
INTEGERS = [key for key, value in KEYS.items() if type(value) is int and "port" not in key]


@given(st.sampled_from(INTEGERS), st.sets(st.sampled_from(["environment", "command line"])))
def test_every_whole_number_can_be_set_from_every_source(key: str, sources: set[str]) -> None:
    variable = "HEADRACE_" + key.upper().replace(".", "__")
    value = KEYS[key] + 1 if "threads" not in key and "lanes" not in key else 2

    loaded = load(
        None,
        {variable: str(value)} if "environment" in sources else {},
        {key: value} if "command line" in sources else {},
    )

    found = {setting.key: (setting.value, setting.source) for setting in loaded.explain()}[key]
    expected = "command line" if "command line" in sources else variable if sources else "default"
    assert found == (value if sources else KEYS[key], expected)


@pytest.mark.parametrize("key", ["nonsense", "server.nonsense", "nonsense.deep.down", "server.port.deep", "data.deep"])
def test_an_unknown_key_is_named_with_its_source(tmp_path: Path, key: str) -> None:
    *sections, leaf = key.split(".")
    file = write(tmp_path, f"[{'.'.join(sections)}]\n{leaf} = 1\n" if sections else f"{leaf} = 1\n")
    variable = "HEADRACE_" + key.upper().replace(".", "__")
    if key not in ("server.port.deep", "data.deep"):
        said = f"unknown setting {key} "
        with pytest.raises(CannotStart, match=rf"{said}\(from {file}\)"):
            load(file, NOTHING, {})
        with pytest.raises(CannotStart, match=rf"{said}\(from {variable}\)"):
            load(None, {variable: "1"}, {})
        with pytest.raises(CannotStart, match=rf"{said}\(from command line\)"):
            load(None, NOTHING, {key: "1"})
        return
    with pytest.raises(CannotStart, match=rf"{key.removesuffix('.deep')} = .*\(from {file}\)"):
        load(file, NOTHING, {})
    with pytest.raises(CannotStart, match=rf"unknown setting {key} \(from command line\)"):
        load(None, {variable.removesuffix("__DEEP"): "1"}, {key: "1"})


@pytest.mark.parametrize(
    ("key", "value"),
    [("server.port", "x"), ("server.port", "65536"), ("server.port", "-1"), ("server.port", "1.5"), ("server.port", ""),
     ("training.lease_seconds", "0"), ("training.lease_seconds", "nan"), ("server.drain_seconds", "inf"),
     ("training.on_shutdown", "panic"), ("telemetry.log_level", "loud"), ("server", "localhost")],
)  # fmt: skip
def test_a_bad_value_is_told_with_its_key_and_source(key: str, value: str) -> None:
    variable = "HEADRACE_" + key.upper().replace(".", "__")
    with pytest.raises(CannotStart, match=rf"^{key} = '{value}' \(from command line\): "):
        load(None, NOTHING, {key: value})
    if variable == "HEADRACE_SERVER":
        return
    with pytest.raises(CannotStart, match=rf"^{key} = '{value}' \(from {variable}\): "):
        load(None, {variable: value}, {})


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(CannotStart) as caught:
        load(None, {"HEADRACE_SERVER__PORT": "x"}, {"server.nonsense": "1", "other.thing": "2"})

    assert [line.split(" (")[0] for line in str(caught.value).splitlines()] == [
        "server.port = 'x'",
        "unknown setting server.nonsense",
        "unknown setting other.thing",
    ]


def test_a_section_that_replaces_another_takes_its_place() -> None:
    loaded = load(None, {"HEADRACE_MODELS__SERVE__A": "/a"}, {"models.serve": {"b": "/b"}})

    assert loaded.settings.models.serve == {"b": Path("/b")}
    assert loaded.sources == {"models.serve": "command line"}


def test_models_to_serve_can_be_named_in_every_source(tmp_path: Path) -> None:
    expected = {"a": Path("/x/a.onnx"), "b": Path("/y")}

    for loaded in (
        load(write(tmp_path, '[models.serve]\na = "/x/a.onnx"\nb = "/y"\n'), NOTHING, {}),
        load(None, {"HEADRACE_MODELS__SERVE": " a = /x/a.onnx , b=/y "}, {}),
        load(None, NOTHING, {"models.serve": "a=/x/a.onnx,b=/y"}),
        load(None, NOTHING, {"models.serve": expected}),
    ):
        assert loaded.settings.models.serve == expected


@pytest.mark.parametrize("text", ["a", "a=", "=b", "a=b,", ",", " =b", "a=1,a=2"])
def test_models_to_serve_that_are_not_pairs_are_refused(text: str) -> None:
    with pytest.raises(CannotStart, match=r"models\.serve: .* (is not NAME=PATH|is given twice)"):
        load(None, {"HEADRACE_MODELS__SERVE": text}, {})


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_variable_names_no_models_and_no_folders(text: str) -> None:
    assert load(None, {"HEADRACE_MODELS__SERVE": text}, {}).settings.models.serve == {}
    assert load(None, {"HEADRACE_DATASETS__ROOTS": text.strip()}, {}).settings.datasets.roots == ()


def test_folders_can_be_named_in_every_source(tmp_path: Path) -> None:
    expected = (Path("/a"), Path("/b c"))

    for loaded in (
        load(write(tmp_path, '[datasets]\nroots = ["/a", "/b c"]\n'), NOTHING, {}),
        load(None, {"HEADRACE_DATASETS__ROOTS": f"/a{os.pathsep}/b c{os.pathsep}"}, {}),
        load(None, NOTHING, {"datasets.roots": f"/a{os.pathsep}/b c"}),
        load(None, NOTHING, {"datasets.roots": ["/a", "/b c"]}),
    ):
        assert loaded.settings.datasets.roots == expected


def test_what_others_put_into_the_environment_is_no_setting() -> None:
    links = {
        "HEADRACE_SERVICE_HOST": "10.0.0.1",
        "HEADRACE_SERVICE_PORT": "50051",
        "HEADRACE_SERVICE_PORT_GRPC": "50051",
        "HEADRACE_PORT": "tcp://10.0.0.1:50051",
        "HEADRACE_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "HEADRACE_PORT_50051_TCP_PROTO": "tcp",
        "HEADRACE_PORT_50051_TCP_ADDR": "10.0.0.1",
        "HEADRACE_SERVER": "localhost:50051",
        "PATH": "/bin",
        "headrace_data": "elsewhere",
    }

    assert load(None, links, {}).sources == {}


def test_passwords_are_not_shown() -> None:
    loaded = load(None, NOTHING, {"database.url": "postgresql+asyncpg://me:s3cret@db/headrace"})

    shown = {setting.key: setting.value for setting in loaded.explain()}["database.url"]

    assert loaded.settings.database.url == "postgresql+asyncpg://me:s3cret@db/headrace"
    assert shown == "postgresql+asyncpg://me:…@db/headrace"


@pytest.mark.parametrize(("text", "said"), [("a = ", "is not TOML"), ("\0", "is not TOML")])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(CannotStart, match=said):
        from_text(tmp_path, text)


def test_a_file_that_is_missing_or_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"data = '\xe4'")

    with pytest.raises(CannotStart, match=r"missing\.toml cannot be read: No such file"):
        load(tmp_path / "missing.toml", NOTHING, {})
    with pytest.raises(CannotStart, match="cannot be read: Is a directory"):
        load(tmp_path, NOTHING, {})
    with pytest.raises(CannotStart, match=r"latin\.toml is not TOML"):
        load(tmp_path / "latin.toml", NOTHING, {})


def test_assignments_may_hold_equals_signs_and_nothing() -> None:
    assert parse_assignments(["a.b=c=d", "e=", " f =g"]) == {"a.b": "c=d", "e": "", "f": "g"}


@pytest.mark.parametrize("text", ["a", "=b", ""])
def test_an_assignment_without_a_key_is_refused(text: str) -> None:
    with pytest.raises(CannotStart, match="is not KEY=VALUE"):
        parse_assignments([text])


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(Settings().server, "port", 1)  # noqa: B010 - the type checker refuses the plain form
