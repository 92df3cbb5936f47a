"""`headrace predict`: ask a model, with input from a file or the command line."""

import csv
import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import ArrayLike

from headrace.cli.printing import print_json, print_table
from headrace.cli.session import DEFAULT_SERVER, AsJson, Server, console, fail, perform
from headrace.cli.story import describe_short
from headrace.client import Client
from headrace.inference_calls import Inputs
from headrace.prediction import MemberAnswer, Prediction
from headrace.tensors import Array

MOST_ROWS = 20
MOST_VALUES = 10


def predict(
    model: Annotated[
        str,
        typer.Argument(
            help="digits, digits@champion, models/digits/versions/3, trainingJobs/JOB@latest (@best, @step:120).",
            show_default=False,
        ),
    ],
    input_: Annotated[
        str,
        typer.Option(
            "--input", "-i", help="A file (.npy, .npz, .csv with a header, .json), or JSON itself: '[[1, 2]]'."
        ),
    ],
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 30.0,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Ask a model.  The first axis of the input counts rows."""
    try:
        inputs = read_inputs(input_)
    except OSError as error:
        fail(f"{input_}: {error.strerror}")
    except ValueError as error:
        fail(f"--input {input_[:60]}: {error}")

    async def work(client: Client) -> None:
        prediction = await client.predict(model, inputs, timeout=timeout)
        if as_json:
            print_json(as_tree(prediction))
        else:
            print_prediction(prediction)

    perform(server, as_json, work)


def read_inputs(text: str) -> Inputs:
    """The arrays that a flag names or holds.  Raises OSError and ValueError."""
    if text.lstrip()[:1] in ("[", "{"):
        return _from_json(text)
    path = Path(text)
    match path.suffix.lower():
        case ".npy":
            array: Array = np.load(path, allow_pickle=False)
            return array
        case ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        case ".csv":
            return _from_csv(path)
        case ".json":
            return _from_json(path.read_text(encoding="utf-8"))
        case _:
            raise ValueError("must be a .npy, .npz, .csv or .json file, or JSON that begins with [ or {")


def _from_json(text: str) -> Inputs:
    tree = json.loads(text)
    if isinstance(tree, dict):
        return {name: _array(value) for name, value in tree.items()}
    return _array(tree)


def _array(value: Any) -> Array:
    array = np.asarray(value)  # raises ValueError for rows of different lengths
    if array.dtype.kind not in "biufU":
        raise ValueError("must hold numbers or text only, without null")
    return array


def _from_csv(path: Path) -> Mapping[str, ArrayLike]:
    """One array a column, with one row a line."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        lines = list(rows)
    if not lines or not rows.fieldnames:
        raise ValueError("needs a header and at least one row")
    if broken := next((number for number, line in enumerate(lines, 2) if None in line or None in line.values()), None):
        raise ValueError(f"line {broken} has another number of columns than the header")
    return {name: _column([line[name] for line in lines]) for name in rows.fieldnames}


def _column(cells: list[str]) -> Array:
    for kind in (np.int64, np.float64):
        try:
            return np.array(cells).astype(kind)
        except ValueError:
            continue
    return np.array(cells)


def as_tree(prediction: Prediction) -> dict[str, Any]:
    """A prediction for programs."""
    timing, provenance = prediction.timing, prediction.provenance
    return {
        "modelVersion": prediction.model_version,
        "outputs": {name: array.tolist() for name, array in prediction.outputs.items()},
        "fromCache": prediction.is_from_cache,
        "classNames": {name: list(names) for name, names in prediction.class_names.items()},
        "timing": {
            "queueSeconds": timing.queue_seconds,
            "assembleSeconds": timing.assemble_seconds,
            "computeSeconds": timing.compute_seconds,
            "respondSeconds": timing.respond_seconds,
            "totalSeconds": timing.total_seconds,
            "batchRows": timing.batch_rows,
            "batchCalls": timing.batch_calls,
        },
        "provenance": {
            "artifactDigest": provenance.artifact_digest,
            "backend": provenance.backend,
            "precision": provenance.precision,
            "device": provenance.device,
            "trainingJob": provenance.training_job,
            "trainingStep": provenance.training_step,
            "checkpointDigest": provenance.checkpoint_digest,
        },
        **_staleness_of(prediction),
        **({"members": [_member(member) for member in prediction.members]} if prediction.members else {}),
    }


def _member(member: MemberAnswer) -> dict[str, Any]:
    return {
        "name": member.name,
        "modelVersion": member.model_version,
        "serverSeconds": member.timing.server_seconds,
        "artifactDigest": member.provenance.artifact_digest,
        "precision": member.provenance.precision,
    }


def _staleness_of(prediction: Prediction) -> dict[str, Any]:
    staleness = prediction.staleness
    return {} if staleness is None else {"staleness": {"steps": staleness.steps, "ageSeconds": staleness.age_seconds}}


def print_prediction(prediction: Prediction) -> None:
    """A prediction for people: a table of rows, then where it came from and where the time went."""
    out = console()
    names = list(prediction.outputs)
    num_rows = max((array.shape[0] for array in prediction.outputs.values() if array.ndim), default=1)
    labels = prediction.labels if any(name in prediction.class_names for name in names) else []
    columns = ["ROW", *(["BEST"] if labels else []), *(name.upper() for name in names)]
    rows = [
        [row, *([labels[row]] if len(labels) == num_rows else labels and [""])]
        + [_cell(prediction.outputs[name], row) for name in names]
        for row in range(min(num_rows, MOST_ROWS))
    ]
    print_table(out, columns, rows, "The model returned nothing.")
    if num_rows > MOST_ROWS:
        out.print(f"… and {num_rows - MOST_ROWS} more rows (--json prints all)", style="dim")
    timing, provenance = prediction.timing, prediction.provenance
    parts = {
        "queue": timing.queue_seconds,
        "assemble": timing.assemble_seconds,
        "compute": timing.compute_seconds,
        "respond": timing.respond_seconds,
        "transport": timing.transport_seconds,
    }
    shares = ", ".join(f"{name} {describe_short(timedelta(seconds=seconds))}" for name, seconds in parts.items())
    for member in prediction.members:
        took = describe_short(timedelta(seconds=member.timing.server_seconds))
        out.print(f"{member.name}: {member.model_version} on {member.provenance.backend}; {took}", style="dim")
    if prediction.is_from_cache:
        out.print("from the response cache", style="dim")
    if (staleness := prediction.staleness) is not None:
        age = describe_short(timedelta(seconds=staleness.age_seconds))
        out.print(f"{staleness.steps:,} steps and {age} behind its job", style="dim")
    out.print(
        f"{prediction.answered_by} on {provenance.backend}, {provenance.precision}, {provenance.device}; "
        f"{describe_short(timedelta(seconds=timing.total_seconds))}: {shares}",
        style="dim",
    )


def _cell(array: Array, row: int) -> str:
    value = array[row] if array.ndim else array
    if np.ndim(value) == 0:
        return _scalar(value)
    flat = np.ravel(value)
    shown = " ".join(_scalar(one) for one in flat[:MOST_VALUES])
    return f"{shown} … ({flat.size})" if flat.size > MOST_VALUES else shown


def _scalar(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, np.floating | float) else str(value)
