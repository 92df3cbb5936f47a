"""headrace.training.v1.TrainingService: thin between the wire and the training desk."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import Literal

from google.protobuf.duration_pb2 import Duration

from headrace.training.v1 import training_service_pb2 as pb, training_service_pb2_grpc as pb_grpc
from headrace_server.errors import InvalidSpec, Violation
from headrace_server.names import JobName
from headrace_server.pages import PageRequest
from headrace_server.rpc.closing import closed_after
from headrace_server.rpc.interceptor import Context
from headrace_server.rpc.ports import DeskPort
from headrace_server.rpc.services.frames import Frames
from headrace_server.rpc.services.sharing import Kind, Sharing, hand_over, shared_entries, shared_frame
from headrace_server.rpc.services.thinning import thin
from headrace_server.rpc.wire.comparison import comparison_to_proto
from headrace_server.rpc.wire.events import (
    duration_from_proto,
    event_to_proto,
    log_entry_to_proto,
    time_to_proto,
)
from headrace_server.rpc.wire.training import job_to_proto, start_request_from_proto, trainer_to_proto
from headrace_server.trainers.catalogue import Families
from headrace_server.trainers.reports import StepCompleted
from headrace_server.training.events import Event, LogEntry, StateChanged

LONGEST_REASON = 1000

_Mode = pb.CancelTrainingJobRequest.Mode

DEFAULT_PROFILE_STEPS = 10
MOST_PROFILE_STEPS = 1000


class TrainingService(pb_grpc.TrainingServiceServicer):
    """Starts jobs, shows them and lets anyone follow."""

    def __init__(self, desk: DeskPort, families: Families) -> None:
        self._desk = desk
        self._families = families
        self._events = Frames()
        self._lines = Frames()

    async def StartTraining(self, request: pb.StartTrainingRequest, context: Context) -> pb.StartTrainingResponse:
        """Admit one job."""
        job = await self._desk.start(start_request_from_proto(request))
        return pb.StartTrainingResponse(job=job_to_proto(job))

    async def StreamProgress(  # type: ignore[override]  # frames are encoded once for all readers
        self, request: pb.StreamProgressRequest, context: Context
    ) -> AsyncIterator[bytes]:
        """Yield a snapshot, then the history after the cursor as it grows, already encoded."""
        name = JobName.parse(request.name)
        after, period_seconds = _cursor(request.after_sequence), _period(request)
        sharing = Sharing.of(context)
        if sharing.is_shared:
            async with closed_after(self._shared_progress(name, sharing.after or 0)) as shared:
                async for entry in shared:
                    yield entry
            return
        job = await self._desk.get(name)
        if sharing.after is None:
            yield pb.StreamProgressResponse(snapshot=job_to_proto(job)).SerializeToString()
        else:
            after = sharing.after
        may_share = not job.state.is_terminal
        if may_share and sharing.has_come(after, await self._desk.latest(name, "events")):
            hand_over(context, name.job, after, period_seconds)
            return
        stepped_at = float("-inf")
        now = asyncio.get_running_loop().time
        async with (
            closed_after(self._desk.follow(name, after)) as events,
            closed_after(thin(events, period_seconds) if period_seconds > 0 else events) as chosen,
        ):
            async for event in chosen:
                yield await self._progress_frame(name, event)
                if event is None or not sharing.may_share or _is_end(event):
                    continue
                if isinstance(event.happening, StepCompleted):
                    stepped_at = now()
                if sharing.has_come(event.sequence, await self._desk.latest(name, "events")):
                    hand_over(context, name.job, event.sequence, period_seconds, stepped_at + period_seconds - now())
                    return

    async def StreamLogs(  # type: ignore[override]  # frames are encoded once for all readers
        self, request: pb.StreamLogsRequest, context: Context
    ) -> AsyncIterator[bytes]:
        """Yield a heartbeat, then the log after the cursor as it grows, already encoded."""
        name = JobName.parse(request.name)
        after = _cursor(request.after_sequence)
        sharing = Sharing.of(context)
        if sharing.is_shared:
            async with closed_after(self._shared_log(name, sharing.after or 0)) as shared:
                async for line in shared:
                    yield line
            return
        if sharing.after is None:
            yield await self._log_frame(name, None)
        else:
            after = sharing.after
        if sharing.may_share and sharing.has_come(after, await self._desk.latest(name, "logs")):
            hand_over(context, name.job, after)
            return
        async with closed_after(self._desk.follow_logs(name, after)) as entries:
            async for entry in entries:
                yield await self._log_frame(name, entry)
                if entry is None or not sharing.may_share:
                    continue
                if sharing.has_come(entry.sequence, await self._desk.latest(name, "logs")):
                    hand_over(context, name.job, entry.sequence)
                    return

    async def GetTrainingJob(self, request: pb.GetTrainingJobRequest, context: Context) -> pb.GetTrainingJobResponse:
        """Return one job."""
        job = await self._desk.get(JobName.parse(request.name))
        return pb.GetTrainingJobResponse(job=job_to_proto(job))

    async def ListTrainingJobs(
        self, request: pb.ListTrainingJobsRequest, context: Context
    ) -> pb.ListTrainingJobsResponse:
        """Return a page of jobs."""
        page = PageRequest.parse(request.page_size, request.page_token, "jobs", request.filter)
        jobs = await self._desk.list(page, request.filter)
        return pb.ListTrainingJobsResponse(jobs=map(job_to_proto, jobs.items), next_page_token=jobs.next_token)

    async def CancelTrainingJob(
        self, request: pb.CancelTrainingJobRequest, context: Context
    ) -> pb.CancelTrainingJobResponse:
        """Ask a job to stop."""
        name = JobName.parse(request.name)
        violations = []
        if request.mode not in _Mode.values():
            violations.append(Violation("mode", "must be MODE_GRACEFUL or MODE_KILL"))
        violations += _reason_violations(request.reason)
        if violations:
            raise InvalidSpec(violations)
        job = await self._desk.cancel(name, kill=request.mode == _Mode.MODE_KILL, reason=request.reason)
        return pb.CancelTrainingJobResponse(job=job_to_proto(job))

    async def PauseTrainingJob(
        self, request: pb.PauseTrainingJobRequest, context: Context
    ) -> pb.PauseTrainingJobResponse:
        """Ask a job to rest."""
        name = JobName.parse(request.name)
        if violations := _reason_violations(request.reason):
            raise InvalidSpec(violations)
        return pb.PauseTrainingJobResponse(job=job_to_proto(await self._desk.pause(name, reason=request.reason)))

    async def ResumeTrainingJob(
        self, request: pb.ResumeTrainingJobRequest, context: Context
    ) -> pb.ResumeTrainingJobResponse:
        """Let a paused job go on."""
        job = await self._desk.resume(JobName.parse(request.name))
        return pb.ResumeTrainingJobResponse(job=job_to_proto(job))

    async def DeleteTrainingJob(
        self, request: pb.DeleteTrainingJobRequest, context: Context
    ) -> pb.DeleteTrainingJobResponse:
        """Remove a job that is over."""
        await self._desk.delete(JobName.parse(request.name))
        return pb.DeleteTrainingJobResponse()

    async def ProfileTraining(self, request: pb.ProfileTrainingRequest, context: Context) -> pb.ProfileTrainingResponse:
        """Have steps of a running job recorded."""
        name = JobName.parse(request.name)
        num_steps = request.num_steps or DEFAULT_PROFILE_STEPS
        if not 1 <= num_steps <= MOST_PROFILE_STEPS:
            raise InvalidSpec([Violation("num_steps", f"must be 1 to {MOST_PROFILE_STEPS}")])
        await self._desk.profile(name, num_steps)
        return pb.ProfileTrainingResponse()

    async def DownloadProfile(
        self, request: pb.DownloadProfileRequest, context: Context
    ) -> AsyncIterator[pb.DownloadProfileResponse]:
        """Yield a trace."""
        content = await self._desk.read_profile(JobName.parse(request.name), request.uri)
        async with closed_after(content) as chunks:
            async for chunk in chunks:
                yield pb.DownloadProfileResponse(chunk=chunk)

    async def CompareTrainingJobs(
        self, request: pb.CompareTrainingJobsRequest, context: Context
    ) -> pb.CompareTrainingJobsResponse:
        """Put jobs side by side."""
        return comparison_to_proto(await self._desk.compare([JobName.parse(name) for name in request.names]))

    async def ListTrainers(self, request: pb.ListTrainersRequest, context: Context) -> pb.ListTrainersResponse:
        """Return a page of what can be trained."""
        page = PageRequest.parse(request.page_size, request.page_token, "trainers")
        families = [family for family in self._families.list() if page.after is None or family.name > page.after]
        shown = page.page(families, [family.name for family in families])
        return pb.ListTrainersResponse(trainers=map(trainer_to_proto, shown.items), next_page_token=shown.next_token)

    async def _shared_progress(self, name: JobName, after: int) -> AsyncIterator[bytes]:
        async with closed_after(shared_entries(partial(self._desk.follow, name), after)) as events:
            async for event in events:
                frame = await self._progress_frame(name, event)
                if event is None:
                    yield shared_frame(Kind.SIGN, 0, frame)
                    continue
                kind = Kind.STEP if isinstance(event.happening, StepCompleted) else Kind.ENTRY
                yield shared_frame(kind, event.sequence, frame)

    async def _shared_log(self, name: JobName, after: int) -> AsyncIterator[bytes]:
        async with closed_after(shared_entries(partial(self._desk.follow_logs, name), after)) as entries:
            async for entry in entries:
                kind, place = (Kind.SIGN, 0) if entry is None else (Kind.ENTRY, entry.sequence)
                yield shared_frame(kind, place, await self._log_frame(name, entry))

    async def _progress_frame(self, name: JobName, event: Event | None) -> bytes:
        if event is None:
            heartbeat = await self._heartbeat(name, "events")
            return pb.StreamProgressResponse(heartbeat=heartbeat).SerializeToString()
        if (frame := self._events.find(name.job, event.sequence)) is not None:
            return frame
        ended = None
        if _is_end(event):
            ended = job_to_proto(await self._desk.get(name))
        message = pb.StreamProgressResponse(event=event_to_proto(event, ended))
        return self._events.keep(name.job, event.sequence, message)

    async def _log_frame(self, name: JobName, entry: LogEntry | None) -> bytes:
        if entry is None:
            heartbeat = await self._heartbeat(name, "logs")
            return pb.StreamLogsResponse(heartbeat=heartbeat).SerializeToString()
        if (frame := self._lines.find(name.job, entry.sequence)) is not None:
            return frame
        return self._lines.keep(name.job, entry.sequence, pb.StreamLogsResponse(line=log_entry_to_proto(entry)))

    async def _heartbeat(self, name: JobName, stream: Literal["events", "logs"]) -> pb.Heartbeat:
        return pb.Heartbeat(
            time=time_to_proto(datetime.now(UTC)), latest_sequence=await self._desk.latest(name, stream)
        )


def _is_end(event: Event) -> bool:
    return isinstance(event.happening, StateChanged) and event.happening.to_state.is_terminal


def _reason_violations(reason: str) -> list[Violation]:
    if len(reason) <= LONGEST_REASON:
        return []
    return [Violation("reason", f"has {len(reason)} characters, at most {LONGEST_REASON}")]


def _cursor(after_sequence: int) -> int:
    if after_sequence < 0:
        raise InvalidSpec([Violation("after_sequence", "must not be negative")])
    return after_sequence


def _period(request: pb.StreamProgressRequest) -> float:
    period: Duration = request.min_step_period
    seconds = duration_from_proto(period)
    if seconds < 0:
        raise InvalidSpec([Violation("min_step_period", "must not be negative")])
    return seconds
