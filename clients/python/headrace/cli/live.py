"""Follows a training on the terminal: a panel that redraws itself, or plain lines where there is no terminal.

Used by `headrace watch` and `headrace train --follow`; the quickstart shows the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from time import monotonic

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from headrace.cli.curves import Series, draw
from headrace.cli.story import Line, Story, describe_seconds
from headrace.errors import TrainingCancelled, TrainingFailed
from headrace.events import has_ended
from headrace.resume import Interruption
from headrace.run import TrainingRun
from headrace.status import from_status
from headrace.training.v1.training_job_pb2 import TrainingJob

FRAMES_PER_SECOND = 8
PLAIN_STEP_SECONDS = 2.0
LARGEST_WIDTH = 100
CURVE_HEIGHT = 4


async def show(run: TrainingRun, console: Console) -> TrainingJob:
    """Follow a training until it ends and return the finished job, however it ended."""
    await (_show_live if console.is_terminal else _show_plain)(run, console)
    return run.job


def raise_unless_succeeded(job: TrainingJob) -> None:
    """Raise TrainingFailed or TrainingCancelled for a job that ended so."""
    if job.state == TrainingJob.State.STATE_FAILED:
        raise TrainingFailed(job, from_status(job.failure))
    if job.state == TrainingJob.State.STATE_CANCELLED:
        raise TrainingCancelled(job)


async def _show_live(run: TrainingRun, console: Console) -> None:
    story = Story(run.job)
    with Live(console=console, auto_refresh=False, get_renderable=lambda: render(story, console.width)) as live:
        async with _refreshing(live), aclosing(run.follow(on_interruption=story.note_interruption)) as events:
            async for event in events:
                story.note(event, run.job)
        story.job = run.job


@asynccontextmanager
async def _refreshing(live: Live) -> AsyncIterator[None]:
    """Redraw at a steady rate, whether or not anything happens."""

    async def refresh() -> None:
        while True:
            live.refresh()
            await asyncio.sleep(1 / FRAMES_PER_SECOND)

    task = asyncio.create_task(refresh())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def render(story: Story, width: int) -> RenderableType:
    """The panel."""
    width = min(width, LARGEST_WIDTH)
    inside = width - 4
    percent = f"{story.fraction * 100:3.0f} %"
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=1.0, completed=story.fraction, width=max(10, inside - 42)), percent, story.place)
    curves = Table.grid(padding=(0, 2))
    half = (inside - 2) // 2
    curves.add_row(
        _curve("training loss", story.loss, None, half, "cyan"),
        _curve(story.measure_name and f"held-out {story.measure_name}", story.measure, story.best, half, "green"),
    )
    parts: list[RenderableType] = [Text(story.title, style="bold"), bar, curves]
    parts += [Text(text, style="dim", overflow="ellipsis", no_wrap=True) for text in (story.pace, story.step_time)]
    if story.interruption is not None:
        parts.append(Text(_describe(story.interruption), style="yellow"))
    colour = _COLOURS.get(story.job.state, "blue")
    title = f"[bold]{story.job.name}[/] [{colour}]{story.state}[/]"
    panel = Panel(Group(*parts), title=title, title_align="left", border_style=colour, width=width)
    return Group(panel, *(_line(line) for line in story.lines))


def _curve(name: str, series: Series, best: float | None, width: int, colour: str) -> RenderableType:
    if not name or series.latest is None:
        return Text("\n" * CURVE_HEIGHT)
    points = series.points
    suffix = "" if best is None else f"  best {best:.4g}"
    text = Text(f"{name} {series.latest:.4g}{suffix}\n", no_wrap=True)
    labels = [f"{max(points):.3g}", *[""] * (CURVE_HEIGHT - 2), f"{min(points):.3g}"] if points else [""] * CURVE_HEIGHT
    gutter = max(map(len, labels)) + 1
    for label, line in zip(labels, draw(points, max(4, width - gutter), CURVE_HEIGHT), strict=True):
        text.append(f"{label:>{gutter - 1}} ", style="dim")
        text.append(f"{line}\n", style=colour)
    text.rstrip()
    return text


def _line(line: Line) -> Text:
    return Text.assemble((f" {_clock(line.time)}  ", "dim"), (line.text, "yellow" if line.is_bad else ""))


async def _show_plain(run: TrainingRun, console: Console) -> None:
    story = Story(run.job)
    console.print(f"{story.job.name}  {story.title}", markup=False, highlight=False, soft_wrap=True)
    shown_at = monotonic()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    def note_interruption(interruption: Interruption) -> None:
        story.note_interruption(interruption)
        say(_describe(interruption))

    async with aclosing(run.follow(on_interruption=note_interruption)) as events:
        async for event in events:
            line = story.note(event, run.job)
            if line is not None:
                say(f"{_clock(line.time)}  {line.text}")
            elif event.kind == "step_completed" and monotonic() - shown_at >= PLAIN_STEP_SECONDS:
                shown_at = monotonic()
                loss = "" if story.loss.latest is None else f"loss {story.loss.latest:.4g}"
                say(f"{_clock(event.time)}  {story.fraction * 100:3.0f} %  {story.place}  {loss}  {story.pace}")


def describe_end(job: TrainingJob) -> str:
    """One sentence about a job that has ended."""
    took = job.end_time.ToDatetime() - job.create_time.ToDatetime()
    if job.state == TrainingJob.State.STATE_SUCCEEDED:
        return f"{job.model_version} is registered; {job.name} took {describe_seconds(took.total_seconds())}"
    return f"{job.name} is {'still live' if not has_ended(job) else 'over'}"


def _describe(interruption: Interruption) -> str:
    error = interruption.error
    why = error.message if error.reason else "nobody answers"  # gRPC's own words are long, and for its makers
    return f"connection lost: {why}; next try in {interruption.wait_seconds:.1f} s, the training goes on"


def _clock(time: datetime) -> str:
    return f"{time.astimezone():%H:%M:%S}"


_COLOURS = {
    TrainingJob.State.STATE_SUCCEEDED: "green",
    TrainingJob.State.STATE_FAILED: "red",
    TrainingJob.State.STATE_CANCELLED: "yellow",
    TrainingJob.State.STATE_CANCELLING: "yellow",
    TrainingJob.State.STATE_RECOVERING: "yellow",
}
