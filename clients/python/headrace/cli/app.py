"""All commands, one group a file, under one program."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from headrace.channel import tls_credentials
from headrace.cli.datasets import datasets
from headrace.cli.jobs import add_job_commands
from headrace.cli.models import models
from headrace.cli.predict import predict
from headrace.cli.server import status, trainers
from headrace.cli.session import EXIT_CODES_TEXT, dial_with, fail
from headrace.cli.train import train


class _InOrder(TyperGroup):
    """Lists commands in the order of a life: train, watch, ask."""

    def list_commands(self, ctx: Any) -> list[str]:
        order = ("train", "watch", "jobs", "cancel", "logs", "predict", "models", "datasets", "trainers", "status")
        return sorted(super().list_commands(ctx), key=order.index)


app = typer.Typer(
    cls=_InOrder,
    help="Train models, watch them train, and ask them: all over one gRPC contract.",
    epilog=EXIT_CODES_TEXT,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(train)
add_job_commands(app)
app.command()(predict)
app.add_typer(datasets)
app.add_typer(models)
app.command()(trainers)
app.command()(status)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(f"headrace {version('headrace')}")
        raise typer.Exit


@app.callback()
def _options(
    tls: Annotated[
        bool, typer.Option("--tls", envvar="HEADRACE_TLS", help="Speak TLS with the server; the files below imply it.")
    ] = False,
    ca: Annotated[
        Path | None,
        typer.Option("--tls-ca", envvar="HEADRACE_TLS_CA", help="PEM file: who signed the server's certificate."),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option("--tls-certificate", envvar="HEADRACE_TLS_CERTIFICATE", help="PEM file: your own certificate."),
    ] = None,
    key: Annotated[Path | None, typer.Option("--tls-key", envvar="HEADRACE_TLS_KEY", help="PEM file: its key.")] = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Hold what stands before a command."""
    try:
        dial_with(tls_credentials(ca, certificate, key) if tls or ca or certificate or key else None)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    except ValueError as error:
        fail(str(error))
