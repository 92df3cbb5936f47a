"""`headrace watch`, `jobs …`, `cancel` and `logs`: trainings that were started, by anybody."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from headrace.cli.comparison import compare
from headrace.cli.live import describe_end, raise_unless_succeeded, show
from headrace.cli.printing import age, print_json, print_table
from headrace.cli.session import DEFAULT_SERVER, AsJson, Server, console, perform
from headrace.client import Client
from headrace.events import state_name
from headrace.names import display_name, short_name
from headrace.run import TrainingRun
from headrace.training.v1.training_event_pb2 import TrainingEvent
from headrace.training.v1.training_job_pb2 import TrainingJob

Job = Annotated[str, typer.Argument(help="The job's id or full name.", show_default=False)]
Reason = Annotated[str, typer.Option(help="Why, for whoever reads the history.")]
_STATE_COLOURS = {"SUCCEEDED": "green", "FAILED": "red", "CANCELLED": "yellow", "RUNNING": "blue"}

jobs = typer.Typer(
    name="jobs",
    help="List and compare trainings; pause, resume, cancel or delete one.",
    rich_markup_mode="rich",
    no_args_is_help=True,
)


def add_job_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the program."""
    of_program: tuple[Callable[..., None], ...] = (watch, cancel, logs)
    of_jobs: tuple[Callable[..., None], ...] = (compare, pause, resume, cancel, delete, profile)
    for command in of_program:
        app.command()(command)
    app.add_typer(jobs)
    for command in of_jobs:
        jobs.command()(command)


def watch(job: Job, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Watch a training until it ends; Ctrl-C leaves, and the training goes on.

    With --json, one event a line, each in the contract's form.
    """

    async def work(client: Client) -> None:
        await follow_to_the_end(await client.training_run(job), server, as_json)

    perform(server, as_json, work)


async def follow_to_the_end(run: TrainingRun, server: str, as_json: bool) -> None:
    """Show a training until it ends.  Raises TrainingFailed or TrainingCancelled, and typer.Exit after Ctrl-C."""
    try:
        if as_json:
            async with aclosing(run.follow()) as events:
                async for event in events:
                    message = TrainingEvent(sequence=event.sequence)
                    message.time.FromDatetime(event.time)
                    if event.content is not None:
                        getattr(message, event.kind).CopyFrom(event.content)
                    print_json(message)
        else:
            await show(run, console())
    except asyncio.CancelledError:
        id_ = short_name(run.name)
        typer.echo(
            f"\nYou stopped watching; the training goes on.\n"
            f"  Come back with   headrace watch {id_}{_server_flag(server)}\n"
            f"  Stop it with     headrace cancel {id_}{_server_flag(server)}",
            err=True,
        )
        raise
    raise_unless_succeeded(run.job)
    if not as_json:
        console().print(f"[green]✓[/] {describe_end(run.job)}", soft_wrap=True)


@jobs.command("list")
def list_(
    state: Annotated[str, typer.Option(help="Only jobs in this state, for example RUNNING.")] = "",
    model: Annotated[str, typer.Option(help="Only jobs for this model.")] = "",
    filter_: Annotated[str, typer.Option("--filter", help="Conditions in the contract's form, joined by AND.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most this many, newest first.")] = 20,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """List trainings, newest first."""
    conditions = [
        *([filter_] if filter_ else []),
        *([f"state = {state.upper()}"] if state else []),
        *([f"model = models/{short_name(model) if '/' in model else model}"] if model else []),
    ]

    async def work(client: Client) -> None:
        found = await client.list_training_jobs(filter=" AND ".join(conditions), limit=limit)
        if as_json:
            print_json(found)
            return
        columns = ("JOB", "STATE", "DONE", "DATA SET", "MODEL", "STARTED")
        print_table(console(), columns, map(_row, found), "There are no such jobs.", whole=("JOB",))

    perform(server, as_json, work)


def cancel(
    job: Job,
    kill: Annotated[bool, typer.Option("--kill", help="End its processes at once, without a last checkpoint.")] = False,
    reason: Reason = "",
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Stop a training: after a last checkpoint, or at once with --kill."""

    _ask(job, server, as_json, lambda run: run.cancel(kill=kill, reason=reason))


def pause(
    job: Job,
    reason: Reason = "",
    wait: Annotated[bool, typer.Option("--wait", help="Return when it rests.")] = False,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Let a training rest after a checkpoint, until it is resumed."""
    _ask(job, server, as_json, lambda run: run.pause(reason=reason, wait=wait))


def resume(job: Job, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Let a paused training go on, exactly where it was, when its turn comes."""
    _ask(job, server, as_json, lambda run: run.resume())


def profile(
    job: Job,
    to: Annotated[Path, typer.Argument(help="The file to write: gzipped JSON for Perfetto and chrome://tracing.")],
    steps: Annotated[int, typer.Option(min=1, max=1000, help="How many steps to record.")] = 10,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Record the next steps of a running training, and download the trace."""

    async def work(client: Client) -> None:
        run = await client.training_run(job)
        recorded = await run.profile(steps)
        where = await run.download_profile(recorded, to)
        if as_json:
            print_json(recorded)
        else:
            last = recorded.first_step + recorded.num_steps - 1
            console().print(f"Steps {recorded.first_step} to {last} are in {where}: open it at https://ui.perfetto.dev")

    perform(server, as_json, work)


def delete(job: Job, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Remove a training that has ended, with its history and its checkpoints; the model version stays."""

    async def work(client: Client) -> None:
        run = await client.training_run(job)
        await run.delete()
        if as_json:
            print_json({"name": run.name, "deleted": True})
        else:
            console().print(f"{run.name} is deleted.")

    perform(server, as_json, work)


def logs(
    job: Job,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Skip lines up to this number.")] = 0,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Print what a training has written."""

    async def work(client: Client) -> None:
        run = await client.training_run(job)
        async with aclosing(run.logs(after, follow=follow)) as lines:
            async for line in lines:
                if as_json:
                    print_json(line)
                else:
                    typer.echo(line.text)

    perform(server, as_json, work)


def _ask(job: str, server: str, as_json: bool, verb: Callable[[TrainingRun], Awaitable[TrainingJob]]) -> None:
    """Ask something of a job, and print the state it is in then."""

    async def work(client: Client) -> None:
        after = await verb(await client.training_run(job))
        if as_json:
            print_json(after)
        else:
            console().print(f"{after.name} is {state_name(after.state)}.")

    perform(server, as_json, work)


def _row(job: TrainingJob) -> tuple[object, ...]:
    name = state_name(job.state)
    done = f"{job.latest_step.fraction:.0%}" if job.HasField("latest_step") else ""
    return (
        short_name(job.name),
        Text(name, style=_STATE_COLOURS.get(name, "")),
        done,
        display_name(job.spec.dataset),
        display_name(job.model_version or job.spec.model),
        age(job.create_time),
    )


def _server_flag(server: str) -> str:
    return "" if server == DEFAULT_SERVER else f" --server {server}"
