import asyncio
import json
import socket
import sqlite3
import sys
from pathlib import Path

import pytest

import headrace_server
from tests.doubles.server_process import ServerProcess, running
from tests.doubles.until import until

COMMAND = (sys.executable, "-m", "headrace_server")


async def run(*arguments: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_the_version_is_printed() -> None:
    assert await run("--version") == (0, f"{headrace_server.__version__}\n", "")


async def test_settings_say_where_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.toml").write_text("[training]\nqueue_limit = 5\n")
    monkeypatch.setenv("HEADRACE_SERVER__PORT", "1234")

    code, out, _ = await run(
        "settings", "--json", "--config", str(tmp_path / "c.toml"), "--set", "inference.max_batch_rows=7"
    )

    assert code == 0
    rows = {row["key"]: row for row in json.loads(out)}
    assert (rows["training.queue_limit"]["value"], rows["training.queue_limit"]["source"]) == (
        5, str(tmp_path / "c.toml"),
    )  # fmt: skip
    assert (rows["server.port"]["value"], rows["server.port"]["source"]) == (1234, "HEADRACE_SERVER__PORT")
    assert rows["inference.max_batch_rows"]["source"] == "command line"
    assert rows["server.host"]["source"] == "default"
    assert all(row["description"] for row in rows.values())


async def test_settings_are_a_table_for_people() -> None:
    code, out, _ = await run("settings")

    assert code == 0
    assert "training.on_shutdown" in out
    assert "suspend" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "training.nonsense=1"), "training.nonsense"),
        (("--set", "server.port=many"), "server.port"),
        (("--set", "server.port"), "KEY=VALUE"),
        (("--config", "/nowhere.toml"), "/nowhere.toml"),
        (("--model", "just-a-name"), "NAME=PATH"),
        (("--model", "m=/nowhere.onnx", "--port", "0", "--set", "telemetry.metrics_port=-1"), "/nowhere.onnx"),
    ],
)
async def test_a_server_that_cannot_start_says_why_and_nothing_else(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    code, _, err = await run("serve", "--data", str(tmp_path), *arguments)

    assert code == 2
    assert words in err
    assert "Traceback" not in err


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, _, err = await run("serve", "--data", str(tmp_path), "--port", port)

    assert code == 2
    assert port in err


async def test_every_line_of_the_log_is_an_object_with_a_time_a_level_and_an_event(tmp_path: Path) -> None:
    async with running(tmp_path) as (server, _):
        pass

    assert server.text == []
    assert all(list(line)[:3] == ["time", "level", "event"] for line in server.lines)


async def test_people_are_told_when_it_is_ready(tmp_path: Path) -> None:
    server = await ServerProcess.start(tmp_path, "--set", "telemetry.log_format=console")
    try:
        await until(lambda: any("is ready on 127.0.0.1:" in line for line in server.text))
        server.process.terminate()
        assert await server.ended() == 0
    finally:
        await server.kill()


async def test_a_server_does_not_load_torch(tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from headrace_server.house import House
from headrace_server.settings import Settings
async def look():
    settings = {{"data": {str(tmp_path)!r}, "server": {{"port": 0}}, "telemetry": {{"metrics_port": -1}}}}
    async with House(Settings.model_validate(settings)):
        pass
asyncio.run(look())
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("torch", "onnxscript", "pandas")))
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()

    assert out.decode().splitlines()[-1] == "[]"


async def test_a_self_check_of_a_new_folder_finds_all_well_and_makes_nothing(tmp_path: Path) -> None:
    any_port = ("--set", "server.port=0", "--set", "telemetry.metrics_port=0")
    code, out, _ = await run("selfcheck", "--json", "--data", str(tmp_path / "new"), *any_port)

    findings = {finding["name"]: finding for finding in json.loads(out)}
    assert code == 0, out
    assert set(findings) == {
        "native module", "door", "onnxruntime", "torch", "grpc", "tls", "data folder", "database", "port",
        "metrics port", "connections", "sinks",
    }  # fmt: skip
    assert "CPU" in findings["onnxruntime"]["detail"]
    assert not (tmp_path / "new").exists()


async def test_a_self_check_sees_a_newer_database_and_a_taken_port(tmp_path: Path) -> None:
    async with running(tmp_path) as (server, _):
        await server.kill()
    connection = sqlite3.connect(tmp_path / "headrace.db")
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, out, _ = await run("selfcheck", "--data", str(tmp_path), "--set", f"server.port={port}")

    lines = {line.split("  ")[0] + line for line in out.splitlines()}
    assert code == 2
    assert any("newer release" in line and "broken" in line for line in lines), out
    assert any(str(port) in line and "broken" in line for line in lines), out
