"""`headrace status` and `headrace trainers`: what a server is and can do."""

from time import perf_counter
from typing import Any

import typer
from google.protobuf.json_format import MessageToDict
from rich.text import Text

from headrace.cli.printing import print_fields, print_json, print_table
from headrace.cli.session import DEFAULT_SERVER, AsJson, ExitCode, Server, console, perform
from headrace.client import Client
from headrace.errors import NotFound
from headrace.events import has_ended
from headrace.health_calls import Health
from headrace.training.v1.training_service_pb2 import Trainer

_LIVE = ("QUEUED", "PREPARING", "RUNNING", "FINALIZING", "RECOVERING", "CANCELLING")


def status(server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Say whether the server answers, and what it is busy with; exit code 6 when it does not serve."""

    async def work(client: Client) -> None:
        started_at = perf_counter()
        health = await client.health()
        round_trip_seconds = perf_counter() - started_at
        jobs = [job for job in await client.list_training_jobs(limit=200) if not has_ended(job)]
        models = await client.list_models()
        ready = [model.name for model in models if await _is_ready(client, model.name)]
        datasets = await client.list_datasets()
        if as_json:
            tree = {
                "server": server,
                "health": health.name,
                "roundTripSeconds": round_trip_seconds,
                "liveJobs": [job.name for job in jobs],
                "models": [model.name for model in models],
                "readyModels": ready,
                "datasets": [dataset.name for dataset in datasets],
            }
            print_json(tree)
        else:
            is_serving = health is Health.SERVING
            fields = (
                ("server", server),
                ("health", Text(health.name.lower().replace("_", " "), style="green" if is_serving else "red")),
                ("answers in", f"{round_trip_seconds * 1e3:.1f} ms"),
                ("live jobs", ", ".join(job.name for job in jobs) or "none"),
                ("models", f"{len(models)}, {len(ready)} loaded"),
                ("data sets", len(datasets)),
            )
            print_fields(console(), fields)
        if health is not Health.SERVING:
            raise typer.Exit(ExitCode.UNAVAILABLE)

    perform(server, as_json, work)


def trainers(server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """List what can be trained, with the parameters of each trainer."""

    async def work(client: Client) -> None:
        found = await client.list_trainers()
        if as_json:
            print_json(found)
            return
        out = console()
        for trainer in found:
            title = Text.assemble((trainer.name, "bold"), f"  {trainer.title}")
            title.append("  plug-in" if trainer.is_plugin else "", style="dim")
            title.append(f"  reads {', '.join(trainer.dataset_formats)}", style="dim")
            out.print(title)
            print_table(out, ("PARAMETER", "TYPE", "DEFAULT", "MEANING"), _parameters(trainer), "  no parameters")

    perform(server, as_json, work)


async def _is_ready(client: Client, model: str) -> bool:
    try:
        return await client.health(model) is Health.SERVING
    except NotFound:
        return False


def _parameters(trainer: Trainer) -> list[tuple[object, ...]]:
    schema = MessageToDict(trainer.parameters_schema)
    required = schema.get("required", [])
    rows: list[tuple[object, ...]] = []
    for name, one in sorted(schema.get("properties", {}).items()):
        default = "required" if name in required else one.get("default", "")
        rows.append((name, _type(one), _shown(default), one.get("description", "")))
    return rows


def _shown(value: Any) -> str:
    """A value of the schema; all its numbers came as floating-point."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in sorted(value.items()))
    return "" if value is None else str(value)


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type") or schema.get("$ref", "").rpartition("/")[2] or "any")
