"""`headrace models plan`: how a version is run, what else was tried, and why."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from headrace.cli.printing import age, print_fields, print_json, print_table
from headrace.cli.session import DEFAULT_SERVER, AsJson, Server, console, fail, perform
from headrace.cli.story import describe_bytes
from headrace.client import Client
from headrace.models.v1.plan_pb2 import Plan, Trial
from headrace.type.v1.tensor_pb2 import Precision


def plan(
    name: Annotated[str, typer.Argument(help="digits, digits@champion or models/digits/versions/3.")],
    measure: Annotated[bool, typer.Option("--measure", help="Measure anew first; takes minutes.")] = False,
    calibrate: Annotated[
        Path | None, typer.Option(help="An .npz file with one array for each input: rows to judge by from now on.")
    ] = None,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Show how a version is run, what else was tried, and why this was chosen."""
    rows = _read(calibrate) if calibrate is not None else None

    async def work(client: Client) -> None:
        if rows is not None:
            await client.set_calibration(name, rows)
        found = await (client.measure_plan(name) if measure else client.get_plan(name))
        if as_json:
            print_json(found)
        else:
            _print_plan(console(), found)

    perform(server, as_json, work)


def _read(path: Path) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    try:
        with np.load(path, allow_pickle=False) as loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError) as error:
        fail(f"{path} cannot be read as .npz: {error}")


def _print_plan(to: Console, plan: Plan) -> None:
    decision = plan.decision
    sources = Plan.RowSource.Name(plan.row_source)[11:].lower().replace("_", " ")
    environment = plan.environment
    print_fields(
        to,
        (
            ("version", plan.model_version),
            ("state", Plan.State.Name(plan.state)[6:].lower()),
            ("problem", plan.problem),
            ("asked for", _precision(plan.policy.precision)),
            ("runs", ", ".join(plan.running)),
            ("why", decision.why),
            ("alone", f"{decision.lone_threads} threads a run" if plan.trials else ""),
            ("busy", f"{decision.busy_sessions} runs of {decision.busy_threads} threads" if plan.trials else ""),
            ("batches", f"up to {decision.max_batch_rows} rows" if plan.trials else ""),
            (
                "judged by",
                f"{plan.num_rows} rows, {sources}{': ' * bool(plan.why_drawn)}{plan.why_drawn}" if plan.trials else "",
            ),
            ("against", plan.reference),
            ("on", f"{environment.get('processor', '')}, {environment.get('cores', '?')} cores" if plan.trials else ""),
            ("measured", age(plan.measure_time)),
        ),
    )
    if plan.trials:
        columns = ("PLAN", "ROWS", "ROWS/S", "ERROR", "COSINE", "AGREE", "MEMORY", "")
        print_table(to, columns, _lines(plan), "", whole=columns[1:])
        print_fields(to, ((trial.name, trial.refusal) for trial in plan.trials))


def _lines(plan: Plan) -> Iterator[tuple[str, ...]]:
    """One line for each plan and size of batch, with one thread."""
    for trial in plan.trials:
        sizes = [speed for speed in trial.speeds if speed.threads == 1]
        figures = _worst(trial)
        memory = describe_bytes(trial.resident_bytes) if trial.resident_bytes else ""
        if not sizes:
            yield (trial.name, "", "", *figures, memory, "refused" if trial.refusal else "")
        for index, speed in enumerate(sizes):
            rate = speed.rows / max(speed.duration.ToTimedelta().total_seconds(), 1e-9)
            refused = "refused" if trial.refusal and index == 0 else ""
            chosen = "chosen" if _runs(plan, trial.name, speed.rows) else refused
            shown = (trial.name, *figures, memory) if index == 0 else ("", "", "", "", "")
            yield (shown[0], str(speed.rows), f"{rate:,.0f}", *shown[1:], chosen)


def _worst(trial: Trial) -> tuple[str, str, str]:
    if not trial.differences:
        return "", "", ""
    shares = [one.agreement for one in trial.differences if one.HasField("agreement")]
    return (
        f"{max(one.max_relative for one in trial.differences):.2g}",
        f"{min(one.min_cosine for one in trial.differences):.5f}",
        f"{min(shares):.1%}" if shares else "",
    )


def _runs(plan: Plan, name: str, rows: int) -> bool:
    buckets = plan.decision.buckets
    bucket = next((one for one in buckets if rows <= one.max_rows), buckets[-1] if buckets else None)
    return bucket is not None and bucket.trial == name


def _precision(number: Precision.ValueType) -> str:
    return Precision.Name(number)[10:].lower()
