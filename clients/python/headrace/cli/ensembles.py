"""`headrace models ensemble`: several models that answer as one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.json_format import Parse, ParseError

from headrace.cli.printing import print_json
from headrace.cli.session import DEFAULT_SERVER, AsJson, Server, console, fail, perform
from headrace.client import Client
from headrace.ensembles import mean, vote
from headrace.models.v1.ensemble_pb2 import Ensemble

_COMBINE = {"mean": mean, "vote": vote}


def ensemble(
    name: Annotated[str, typer.Argument(help="The model that it becomes a version of: crowd.", show_default=False)],
    member: Annotated[
        list[str] | None,
        typer.Option(help="NAME=MODEL; digits@champion follows the alias, digits/versions/3 stays. Repeat it."),
    ] = None,
    combine: Annotated[str, typer.Option(help="mean or vote.")] = "mean",
    weight: Annotated[list[str] | None, typer.Option(help="NAME=NUMBER; 1 for members without.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="An Ensemble as JSON instead, as in headrace/models/v1/ensemble.proto; for chains.", show_default=False
        ),
    ] = None,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Register an ensemble: members that answer together, as a mean, a vote, or a chain."""
    try:
        wanted = _read(file) if file is not None else _make(member or (), combine, weight or ())
    except OSError as error:
        fail(f"{file}: {error.strerror}")
    except (ValueError, ParseError) as error:
        fail(str(error))

    async def work(client: Client) -> None:
        version = await client.register_ensemble(name, wanted)
        if as_json:
            print_json(version)
        else:
            console().print(f"{version.name}: {', '.join(each.name for each in version.ensemble.members)}")

    perform(server, as_json, work)


def _read(file: Path) -> Ensemble:
    return Parse(file.read_text(encoding="utf-8"), Ensemble())


def _make(members: Sequence[str], combine: str, weights: Sequence[str]) -> Ensemble:
    if combine not in _COMBINE:
        raise ValueError(f"--combine {combine}: must be {' or '.join(_COMBINE)}; chains come with --file")
    pairs = dict(_pair("--member", text) for text in members)
    if not pairs:
        raise ValueError("--member: needs at least one, or --file")
    weighted = dict(_pair("--weight", text) for text in weights)
    # A name with a slash is a version, with or without the collection before it.
    models = {
        each: model if "/" not in model else f"models/{model.removeprefix('models/')}" for each, model in pairs.items()
    }
    return _COMBINE[combine](models, {each: float(text) for each, text in weighted.items()})


def _pair(option: str, text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name or not value:
        raise ValueError(f"{option} {text}: must be NAME=VALUE")
    return name, value
