"""How results are printed: messages as the contract's JSON for programs, tables for people."""

import json
from collections.abc import Container, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headrace.cli.story import describe_seconds


def print_json(value: Any) -> None:
    """One JSON document on one line; messages in protobuf's JSON form, which grpcurl prints too."""
    typer.echo(json.dumps(_plain(value), ensure_ascii=False))


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    empty: str,
    whole: Container[str] = (),
) -> None:
    """A table, or the sentence `empty` when it has no rows.  On a narrow terminal columns fold, but for `whole`."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in whole)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    console.print(table if table.rows else Text(empty))


def print_fields(console: Console, fields: Iterable[tuple[str, object]]) -> None:
    """Names and values below each other; empty values are left out."""
    grid = Table.grid(padding=(0, 2))
    for name, value in fields:
        if value not in ("", None):
            grid.add_row(Text(name, style="dim"), value if isinstance(value, Text) else Text(str(value)))
    console.print(grid)


def age(time: Timestamp) -> str:
    """How long ago that was."""
    if not time.seconds:
        return ""
    seconds = (datetime.now(UTC) - time.ToDatetime(UTC)).total_seconds()
    return f"{describe_seconds(max(0.0, seconds))} ago"


def _plain(value: Any) -> Any:
    match value:
        case Message():
            return MessageToDict(value)
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value
