"""`headrace datasets …`: what trainings learn from."""

from pathlib import Path
from typing import Annotated, cast

import typer

from headrace.cli.printing import age, print_fields, print_json, print_table
from headrace.cli.session import DEFAULT_SERVER, AsJson, Server, console, fail, perform
from headrace.cli.story import describe_bytes
from headrace.client import Client
from headrace.dataset_calls import FormatName
from headrace.datasets.v1.dataset_pb2 import DatasetFormat, DatasetVersion
from headrace.names import short_name

datasets = typer.Typer(name="datasets", help="Upload, list and delete data sets.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The data set: digits.", show_default=False)]
_FORMATS = ("csv", "parquet", "npz", "image_zip")
MOST_COLUMNS = 20


@datasets.command()
def upload(
    name: Name,
    path: Annotated[Path, typer.Argument(help="A .csv, .parquet, .npz, or a .zip with one folder of images a class.")],
    format_: Annotated[str | None, typer.Option("--format", help=f"{', '.join(_FORMATS)}; told by the ending.")] = None,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Upload a file as a version.  The same content is the same version."""
    if format_ is not None and format_ not in _FORMATS:
        fail(f"--format must be one of {', '.join(_FORMATS)}, not {format_!r}")

    async def work(client: Client) -> None:
        version = await client.upload_dataset(name, path, format=cast("FormatName | None", format_))
        if as_json:
            print_json(version)
        else:
            _print_version(version)

    perform(server, as_json, work)


@datasets.command("list")
def list_(server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """List data sets by name."""

    async def work(client: Client) -> None:
        found = await client.list_datasets()
        if as_json:
            print_json(found)
            return
        rows = [(short_name(one.name), one.num_versions, *_describe(one.latest_version)) for one in found]
        columns = ("DATA SET", "VERSIONS", "FORMAT", "ROWS", "SIZE", "NEWEST")
        print_table(console(), columns, rows, "There are no data sets; `headrace datasets upload NAME FILE` adds one.")

    perform(server, as_json, work)


@datasets.command()
def show(name: Name, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Show a data set and its versions."""

    async def work(client: Client) -> None:
        dataset = await client.get_dataset(name)
        if as_json:
            versions = await client.list_dataset_versions(name)
            print_json({"dataset": dataset, "versions": versions})
            return
        _print_version(dataset.latest_version)
        versions = await client.list_dataset_versions(name)
        rows = [(one.name.rpartition("/")[2], *_describe(one)) for one in versions]
        print_table(console(), ("VERSION", "FORMAT", "ROWS", "SIZE", "STORED"), rows, "")

    perform(server, as_json, work)


@datasets.command()
def delete(name: Name, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Delete a data set with all its versions."""

    async def work(client: Client) -> None:
        await client.delete_dataset(name)
        if as_json:
            print_json({"deleted": name})
        else:
            console().print(f"{name} is gone.")

    perform(server, as_json, work)


def format_name(version: DatasetVersion) -> str:
    """ "npz" for DATASET_FORMAT_NPZ."""
    return DatasetFormat.Name(version.format).removeprefix("DATASET_FORMAT_").lower()


def _describe(version: DatasetVersion) -> tuple[str, str, str, str]:
    size = describe_bytes(version.size_bytes)
    return format_name(version), f"{version.num_rows:,}", size, age(version.create_time)


def _print_version(version: DatasetVersion) -> None:
    columns = [f"{one.name} {one.type}{list(one.shape) if one.shape else ''}" for one in version.columns]
    shown = ", ".join(columns[:MOST_COLUMNS])
    more = f" and {len(columns) - MOST_COLUMNS} more" if len(columns) > MOST_COLUMNS else ""
    print_fields(
        console(),
        (
            ("version", version.name),
            ("content", f"{format_name(version)}, {version.num_rows:,} rows, {describe_bytes(version.size_bytes)}"),
            ("columns", shown + more),
            ("classes", ", ".join(version.class_names)),
            ("digest", version.digest),
            ("source", version.source_uri),
        ),
    )
