"""`headrace jobs compare`: trainings side by side."""

from collections.abc import Iterable, Sequence
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration

from headrace.cli.printing import print_json, print_table
from headrace.cli.session import DEFAULT_SERVER, AsJson, Server, console, perform
from headrace.cli.story import describe_bytes, describe_seconds
from headrace.client import Client
from headrace.events import state_name
from headrace.names import display_name, short_name
from headrace.training.v1.training_event_pb2 import EvaluationCompleted
from headrace.training.v1.training_service_pb2 import ComparedJob, CompareTrainingJobsResponse, Difference

LONGEST_VALUE = 40


def compare(
    jobs: Annotated[list[str], typer.Argument(help="The ids or full names of two to twenty jobs.", show_default=False)],
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Put trainings side by side: what was asked for differently, how good they became, what they took."""

    async def work(client: Client) -> None:
        found = await client.compare_training_jobs(jobs)
        if as_json:
            print_json(found)
        else:
            _print(found)

    perform(server, as_json, work)


def _print(found: CompareTrainingJobsResponse) -> None:
    columns = ("", *(short_name(job.name) for job in found.jobs))
    print_table(console(), columns, [*_figures(found.jobs), *_measures(found.jobs)], "")
    for title, differences in (
        ("ASKED FOR DIFFERENTLY", found.spec_differences),
        ("OF DIFFERENT ORIGIN", found.lineage_differences),
    ):
        if differences:
            print_table(console(), (title, *columns[1:]), map(_difference, differences), "")


def _figures(jobs: Sequence[ComparedJob]) -> Iterable[tuple[str, ...]]:
    rows = (
        ("state", [state_name(job.state) for job in jobs]),
        ("became", [display_name(job.model_version) if job.model_version else "" for job in jobs]),
        ("steps", [f"{job.latest_step.step:,}" if job.HasField("latest_step") else "" for job in jobs]),
        ("last training loss", [f"{job.latest_step.loss:.4g}" if job.HasField("latest_step") else "" for job in jobs]),
        (
            "rows a second",
            [f"{job.latest_step.samples_per_second:,.0f}" if job.HasField("latest_step") else "" for job in jobs],
        ),
        ("waited", [_span(job.queued) for job in jobs]),
        ("took", [_span(job.elapsed) if job.HasField("elapsed") else "" for job in jobs]),
        ("workers", [str(job.num_workers) for job in jobs]),
        ("restarts", [str(job.restarts) for job in jobs]),
        ("checkpoints", [f"{job.num_checkpoints}, {describe_bytes(job.checkpoint_bytes)}" for job in jobs]),
        ("warnings", [str(job.num_warnings) for job in jobs]),
    )
    return [(name, *values) for name, values in rows if any(values)]


def _measures(jobs: Sequence[ComparedJob]) -> Iterable[tuple[str, ...]]:
    names = sorted({name for job in jobs for name in job.latest_evaluation.metrics})
    for name in names:
        yield (f"last {name}", *(_measure(job.latest_evaluation, name) for job in jobs))
        yield (f"best {name}", *(_measure(job.best_evaluation, name) for job in jobs))


def _measure(evaluation: EvaluationCompleted, name: str) -> str:
    if name not in evaluation.metrics:
        return ""
    return f"{evaluation.metrics[name]:.4g} (step {evaluation.step:,})"


def _difference(difference: Difference) -> tuple[str, ...]:
    return (difference.path, *(_short(value) for value in difference.values))


def _short(value: str) -> str:
    return value if len(value) <= LONGEST_VALUE else f"{value[: LONGEST_VALUE - 1]}…"


def _span(span: Duration) -> str:
    return describe_seconds(span.ToTimedelta().total_seconds())
