"""A training desk whose jobs do what a test says."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Literal

from headrace_server.errors import Draining, IllegalTransition, JobNotFound
from headrace_server.names import JobName
from headrace_server.pages import Page, PageRequest
from headrace_server.trainers.recipe import Recipe
from headrace_server.trainers.reports import StepCompleted
from headrace_server.training.comparison import Compared, Comparison, Difference, Tally
from headrace_server.training.draft import StartRequest
from headrace_server.training.events import Event, Happening, LogEntry, LogLine, LogSource
from headrace_server.training.job import Job
from headrace_server.training.spec import TrainingSpec
from headrace_server.training.states import JobState

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def a_job(job_id: str = "j1", **changes: object) -> Job:
    """A queued job over a table."""
    job = Job(
        id=job_id,
        spec=TrainingSpec(
            dataset="datasets/digits/versions/0123456789abcdef",
            dataset_digest="sha256:" + "0123456789abcdef" * 4,
            trainer="tabular",
            parameters={"target": "y", "task": "auto", "features": [], "hidden_widths": [128, 128], "dropout": 0.1},
            model="models/digits",
            recipe=Recipe(seed=7),
        ),
        state=JobState.QUEUED,
        created_at=NOON,
    )
    return job.model_copy(update=changes)


def a_step(step: int) -> StepCompleted:
    """A step with plausible figures."""
    return StepCompleted(
        step=step, epoch=1, fraction=0.5, loss=1 / step, learning_rate=0.001, samples_per_second=1000.0
    )


class JobDesk:
    """Holds one history and one log for each job; a reader waits `heartbeat_seconds` for an entry."""

    def __init__(self, *jobs: Job, heartbeat_seconds: float = 30) -> None:
        self.jobs = {job.id: job for job in jobs}
        self.events: dict[str, list[Event]] = {job.id: [] for job in jobs}
        self.lines: dict[str, list[LogEntry]] = {job.id: [] for job in jobs}
        self.started: list[StartRequest] = []
        self.cancelled: list[tuple[JobName, bool, str]] = []
        self.profiled: list[tuple[JobName, int]] = []
        self.paused: list[tuple[JobName, str]] = []
        self.num_readers = 0
        self._heartbeat_seconds = heartbeat_seconds
        self._is_draining = False
        self._bell = asyncio.Event()

    def happen(self, happening: Happening, job_id: str = "j1", **changes: object) -> None:
        """Append an entry to a job's history, and change the job."""
        events = self.events[job_id]
        events.append(Event(sequence=len(events) + 1, time=NOON, happening=happening))
        changes["latest_sequence"] = len(events)
        self.jobs[job_id] = self.jobs[job_id].model_copy(update=changes)
        self._ring()

    def write_line(self, text: str, job_id: str = "j1") -> None:
        """Append a line to a job's log."""
        lines = self.lines[job_id]
        line = LogLine(source=LogSource.STDOUT, text=text)
        lines.append(LogEntry(sequence=len(lines) + 1, time=NOON, line=line))
        self._ring()

    def drain(self) -> None:
        """End every reader."""
        self._is_draining = True
        self._ring()

    async def start(self, request: StartRequest) -> Job:
        """Admit whatever is asked for as the first job."""
        self.started.append(request)
        return next(iter(self.jobs.values()))

    async def get(self, name: JobName) -> Job:
        """One job."""
        if name.job not in self.jobs:
            raise JobNotFound(str(name))
        return self.jobs[name.job]

    async def list(self, page: PageRequest, filter: str) -> Page[Job]:  # noqa: A002
        """All jobs by id."""
        jobs = [job for key, job in sorted(self.jobs.items()) if page.after is None or key > page.after]
        return page.page(jobs, [job.id for job in jobs])

    async def compare(self, names: Sequence[JobName]) -> Comparison:
        """Jobs that waited two seconds and ran for three, of one difference."""
        jobs = [Compared(await self.get(name), Tally(), 2.0, 3.0) for name in names]
        return Comparison(tuple(jobs), (Difference("recipe.seed", tuple(str(n) for n, _ in enumerate(names))),), ())

    async def cancel(self, name: JobName, *, kill: bool, reason: str) -> Job:
        """Remember it."""
        self.cancelled.append((name, kill, reason))
        return await self.get(name)

    async def pause(self, name: JobName, *, reason: str) -> Job:
        """Remember it."""
        self.paused.append((name, reason))
        return await self.get(name)

    async def resume(self, name: JobName) -> Job:
        """Refuse, as for a job that is not paused."""
        job = await self.get(name)
        raise IllegalTransition(str(name), job.state, "resume")

    async def delete(self, name: JobName) -> None:
        """Forget the job."""
        await self.get(name)
        del self.jobs[name.job]

    async def profile(self, name: JobName, num_steps: int) -> None:
        """Remember it."""
        await self.get(name)
        self.profiled.append((name, num_steps))

    async def read_profile(self, name: JobName, uri: str) -> AsyncIterator[bytes]:
        """Two pieces."""
        await self.get(name)

        async def pieces() -> AsyncIterator[bytes]:
            yield b"tra"
            yield b"ce"

        return pieces()

    async def live_job_using(self, dataset: str) -> Job | None:
        """The first job that is not over and uses it."""
        jobs = (job for job in self.jobs.values() if job.spec.dataset.startswith(f"datasets/{dataset}/"))
        return next((job for job in jobs if not job.state.is_terminal), None)

    async def follow(self, name: JobName, after_sequence: int) -> AsyncIterator[Event | None]:
        """The history, until it ends."""
        await self.get(name)
        self.num_readers += 1
        try:
            while True:
                bell = self._bell
                for event in self.events[name.job][after_sequence:]:
                    after_sequence = event.sequence
                    yield event
                if after_sequence < len(self.events[name.job]):
                    continue  # it has happened while the last was being taken
                if self.jobs[name.job].state.is_terminal:
                    return
                if self._is_draining:
                    raise Draining(after_sequence)
                if not await self._rings(bell):
                    yield None
        finally:
            self.num_readers -= 1

    async def follow_logs(self, name: JobName, after_sequence: int) -> AsyncIterator[LogEntry | None]:
        """The log, until the job ends."""
        await self.get(name)
        while True:
            bell = self._bell
            for entry in self.lines[name.job][after_sequence:]:
                after_sequence = entry.sequence
                yield entry
            if after_sequence < len(self.lines[name.job]):
                continue
            if self.jobs[name.job].state.is_terminal:
                return
            if not await self._rings(bell):
                yield None

    async def latest(self, name: JobName, stream: Literal["events", "logs"]) -> int:
        """How many entries there are."""
        return len(self.events[name.job] if stream == "events" else self.lines[name.job])

    async def _rings(self, bell: asyncio.Event) -> bool:
        try:
            async with asyncio.timeout(self._heartbeat_seconds):
                await bell.wait()
        except TimeoutError:
            return False
        return True

    def _ring(self) -> None:
        bell, self._bell = self._bell, asyncio.Event()
        bell.set()
