"""What every command shares: which server, which form of output, and how a failure ends the program.

Errors are one sentence on standard error, the fields that must change below it, and an exit code by category:

    0  done                          5  overloaded: try again later
    1  a fault of the server         6  nobody answers, or not in time
    2  the request is wrong          7  denied
    3  not found                     8  the training failed
    4  it clashes with what is so    9  the training was cancelled
                                   130  interrupted
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from enum import IntEnum
from typing import Annotated, Any, NoReturn

import grpc
import typer
from rich.console import Console

from headrace.client import DEFAULT_TARGET, Client
from headrace.errors import (
    Conflict,
    DeadlineExceeded,
    Denied,
    HeadraceError,
    Invalid,
    NotFound,
    OutOfRange,
    Overloaded,
    TrainingCancelled,
    TrainingFailed,
    Unavailable,
    WrongState,
)

EXIT_CODES_TEXT = (
    "Exit codes: 0 done, 1 fault of the server, 2 wrong request, 3 not found, 4 clash with what is so, 5 overloaded, "
    "6 nobody answers, 7 denied, 8 training failed, 9 training cancelled, 130 interrupted."
)
DEFAULT_SERVER = DEFAULT_TARGET

Server = Annotated[
    str, typer.Option("--server", envvar="HEADRACE_SERVER", metavar="HOST:PORT", help="The server to ask.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, in the contract's own form, for programs.")]


class ExitCode(IntEnum):
    """How the program ends."""

    DONE = 0
    FAULT = 1
    INVALID = 2
    NOT_FOUND = 3
    CLASH = 4
    OVERLOADED = 5
    UNAVAILABLE = 6
    DENIED = 7
    TRAINING_FAILED = 8
    TRAINING_CANCELLED = 9
    INTERRUPTED = 130


_BY_KIND: tuple[tuple[type[HeadraceError], ExitCode], ...] = (
    (TrainingFailed, ExitCode.TRAINING_FAILED),
    (TrainingCancelled, ExitCode.TRAINING_CANCELLED),
    (Invalid, ExitCode.INVALID),
    (NotFound, ExitCode.NOT_FOUND),
    (Conflict, ExitCode.CLASH),
    (WrongState, ExitCode.CLASH),
    (OutOfRange, ExitCode.CLASH),
    (Overloaded, ExitCode.OVERLOADED),
    (Unavailable, ExitCode.UNAVAILABLE),
    (DeadlineExceeded, ExitCode.UNAVAILABLE),
    (Denied, ExitCode.DENIED),
)


def exit_code_of(error: HeadraceError) -> ExitCode:
    """The exit code of an error's category."""
    return next((code for kind, code in _BY_KIND if isinstance(error, kind)), ExitCode.FAULT)


_credentials: ContextVar[grpc.ChannelCredentials | None] = ContextVar("credentials", default=None)


def dial_with(credentials: grpc.ChannelCredentials | None) -> None:
    """Say how servers are dialled from now on; None: in plain text."""
    _credentials.set(credentials)


def perform(server: str, as_json: bool, work: Callable[[Client], Awaitable[None]]) -> None:
    """Run `work` with a client, and end the program as its outcome asks: at most one sentence, never a traceback."""
    try:
        asyncio.run(_connected(server, work))
    except HeadraceError as error:
        _report(error, server, as_json)
        raise typer.Exit(exit_code_of(error)) from None
    except BrokenPipeError:
        # Whoever read the output has seen enough.  Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(ExitCode.DONE) from None
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def fail(sentence: str, code: ExitCode = ExitCode.INVALID) -> NoReturn:
    """End the program with one sentence."""
    typer.echo(f"headrace: {sentence}", err=True)
    raise typer.Exit(code)


def console() -> Console:
    """Where people read."""
    return Console(highlight=False)


async def _connected(server: str, work: Callable[[Client], Awaitable[None]]) -> None:
    async with Client(server, credentials=_credentials.get()) as client:
        await work(client)


def _report(error: HeadraceError, server: str, as_json: bool) -> None:
    sentence = _sentence(error, server)
    if as_json:
        violations = [{"field": one.field, "description": one.description} for one in error.violations]
        tree: dict[str, Any] = {
            "code": error.code.name,
            "reason": error.reason,
            "message": sentence,
            "metadata": dict(error.metadata),
            "violations": violations,
            "retryAfterSeconds": None if error.retry_after is None else error.retry_after.total_seconds(),
            "requestId": error.request_id,
        }
        typer.echo(json.dumps({"error": tree}), err=True)
        return
    typer.echo(f"headrace: {sentence}", err=True)
    if len(error.violations) > 1 or any(str(one) not in sentence for one in error.violations):
        for violation in error.violations:
            typer.echo(f"  {violation}", err=True)
    if lines := error.metadata.get("last_lines"):
        typer.echo("\n".join(f"  | {line}" for line in lines.splitlines()), err=True)
    if error.retry_after is not None:
        typer.echo(f"  The server suggests to try again in {error.retry_after.total_seconds():g} s.", err=True)


def _sentence(error: HeadraceError, server: str) -> str:
    if isinstance(error, Unavailable) and not error.reason:
        return (
            f"no server answers at {server}; "
            "`headrace-server serve` starts one, --server or HEADRACE_SERVER names another"
        )
    if exit_code_of(error) is ExitCode.FAULT and error.request_id:
        return f"{error.message} (request {error.request_id})"
    return error.message
