"""`headrace-server`: for people who run a server.

Exit codes: 0 all well; 2 it cannot start, and the message says what to change; `selfcheck` has its own.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import structlog
import typer

import headrace_server
from headrace_server import descriptors, settings as settings_module
from headrace_server.errors import CannotStart
from headrace_server.settings import Loaded, Settings, parse_assignments

if TYPE_CHECKING:
    from headrace_server.house import House

CANNOT_START = 2
DEVICE_BROKEN = 3
"""The exit code after a device has broken: a new process may find it whole."""

log = structlog.get_logger()

app = typer.Typer(
    name="headrace-server",
    help="Trains models, lets you watch, and serves what it trained.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[Path | None, typer.Option("--config", help="A TOML file with settings.", show_default=False)]
Data = Annotated[Path | None, typer.Option("--data", help="The data folder; .headrace by default.", show_default=False)]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="Any setting, as KEY=VALUE; repeatable.", show_default=False)
]


def main() -> None:
    """Run the command line."""
    # gRPC's core would write lines of its own to standard error; what matters in them is in exceptions too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    app()


@app.callback(invoke_without_command=True)
def _start(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(headrace_server.__version__)
        raise typer.Exit


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: any.", show_default=False)] = None,
    data: Data = None,
    config: Config = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="A model to serve, as NAME=PATH; repeatable.", show_default=False),
    ] = None,
    assignments: Assignments = None,
) -> None:
    """Serve until SIGTERM or SIGINT; a second one hurries."""
    from headrace_server.telemetry.logs import Log

    loaded = _load(config, data, assignments, host, port, model)
    descriptors.raise_limit()
    with Log(loaded.settings.telemetry):
        problem = asyncio.run(_serve(loaded.settings))
    if isinstance(problem, CannotStart):
        _refuse(problem)
    if problem:
        typer.echo(f"headrace-server ends: {problem} answers nothing any more; start it again", err=True)
        raise typer.Exit(DEVICE_BROKEN)


@app.command()
def settings(
    data: Data = None,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Print every setting, its value and where it came from."""
    rows = _load(config, data, assignments).explain()
    if as_json:
        fields = [
            {"key": row.key, "value": row.value, "source": row.source, "description": row.description} for row in rows
        ]
        typer.echo(json.dumps(fields, indent=2, default=str))
        return
    key_width = max(len(row.key) for row in rows)
    value_width = max(len(_shown(row.value)) for row in rows)
    for row in rows:
        typer.echo(f"{row.key:<{key_width}}  {_shown(row.value):<{value_width}}  {row.source:<12}  {row.description}")


@app.command()
def selfcheck(
    data: Data = None,
    config: Config = None,
    assignments: Assignments = None,
    strict: Annotated[bool, typer.Option("--strict", help="End with 1 when something optional is missing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Look at everything that a server needs; ends with 0 when it could run, 2 when it could not."""
    from headrace_server import selfcheck as checks

    findings = checks.look(_load(config, data, assignments).settings)
    if as_json:
        typer.echo(json.dumps([finding.as_json() for finding in findings], indent=2))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            typer.echo(f"{finding.verdict:<8} {finding.name:<{width}}  {finding.detail}")
    raise typer.Exit(checks.exit_code(findings, strict=strict))


def _load(
    config: Path | None,
    data: Path | None,
    assignments: list[str] | None,
    host: str | None = None,
    port: int | None = None,
    model: list[str] | None = None,
) -> Loaded:
    try:
        argv: dict[str, Any] = dict(parse_assignments(assignments or []))
        served = _pairs(model) if model else None
        given = {"data": data, "server.host": host, "server.port": port, "models.serve": served}
        argv |= {key: value for key, value in given.items() if value is not None}
        return settings_module.load(file=config, argv=argv)
    except CannotStart as error:
        _refuse(error)


def _pairs(models: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in models:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise CannotStart(f"--model {text!r} is not NAME=PATH")
        pairs[name.strip()] = path
    return pairs


def _refuse(error: CannotStart) -> NoReturn:
    typer.echo(f"headrace-server cannot start: {error}", err=True)
    raise typer.Exit(CANNOT_START)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return os.pathsep.join(map(str, value)) if isinstance(value, tuple) else str(value)


async def _serve(chosen: Settings) -> CannotStart | str | None:
    """Serve until told to leave; what was wrong, or the device that broke."""
    from headrace_server.house import House

    house = House(chosen)
    leave = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, house, leave)
    try:
        if not await _unless(leave, house.open()):
            return None
        _say_ready(chosen, house)
        await _unless(leave, _until(house.device_has_broken))
        await house.drain()
        return house.broken_device or None
    except CannotStart as error:
        return error
    finally:
        await house.close()


async def _until(event: asyncio.Event) -> None:
    await event.wait()


def _on_signal(house: "House", leave: asyncio.Event) -> None:
    if leave.is_set():
        house.hurry()
    leave.set()


async def _unless(leave: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do `work`, but give it up when somebody says to leave; whether it was done."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(leave.wait())
    await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
    for task in (working, leaving):
        task.cancel()
    await asyncio.wait((working, leaving))
    if working.cancelled():
        return False
    working.result()
    return True


def _say_ready(chosen: Settings, house: "House") -> None:
    """A line for people, who look at the terminal; programs read `house.open` in the log, or ask for health."""
    if sys.stderr.isatty() or chosen.telemetry.log_format == "console":
        metrics = f", metrics on port {house.metrics_port}" if house.metrics_port >= 0 else ""
        typer.echo(f"headrace-server is ready on {chosen.server.host}:{house.port}{metrics}", err=True)
