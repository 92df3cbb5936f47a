"""All commands, one group a file, under one program."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from headrace.cli.datasets import datasets
from headrace.cli.jobs import add_job_commands
from headrace.cli.models import models
from headrace.cli.predict import predict
from headrace.cli.server import status, trainers
from headrace.cli.session import EXIT_CODES_TEXT
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
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Hold what stands before a command."""
