"""headrace.training.v1.TrainingService: thin between the wire and the training desk."""

from collections.abc import AsyncIterator

from google.protobuf.duration_pb2 import Duration

from headrace.training.v1 import training_service_pb2 as pb, training_service_pb2_grpc as pb_grpc
from headrace_server.errors import InvalidSpec, Violation
from headrace_server.names import JobName
from headrace_server.pages import PageRequest
from headrace_server.rpc.closing import closed_after
from headrace_server.rpc.interceptor import Context
from headrace_server.rpc.ports import DeskPort
from headrace_server.rpc.services.histories import Log, Progress
from headrace_server.rpc.wire.comparison import comparison_to_proto
from headrace_server.rpc.wire.events import duration_from_proto
from headrace_server.rpc.wire.training import job_to_proto, start_request_from_proto, trainer_to_proto
from headrace_server.trainers.catalogue import Families

LONGEST_REASON = 1000

_Mode = pb.CancelTrainingJobRequest.Mode

DEFAULT_PROFILE_STEPS = 10
MOST_PROFILE_STEPS = 1000


class TrainingService(pb_grpc.TrainingServiceServicer):
    """Starts jobs, shows them and lets anyone follow."""

    def __init__(self, desk: DeskPort, families: Families) -> None:
        self._desk = desk
        self._families = families
        self._progress = Progress(desk)
        self._log = Log(desk)

    async def StartTraining(self, request: pb.StartTrainingRequest, context: Context) -> pb.StartTrainingResponse:
        """Admit one job."""
        job = await self._desk.start(start_request_from_proto(request))
        return pb.StartTrainingResponse(job=job_to_proto(job))

    async def StreamProgress(  # type: ignore[override]  # frames are encoded once for all readers
        self, request: pb.StreamProgressRequest, context: Context
    ) -> AsyncIterator[bytes]:
        """Yield a snapshot, then the history after the cursor as it grows, already encoded."""
        name, after, period_seconds = JobName.parse(request.name), _cursor(request.after_sequence), _period(request)
        async with closed_after(self._progress.read(name, after, context, period_seconds)) as frames:
            async for frame in frames:
                yield frame

    async def StreamLogs(  # type: ignore[override]  # frames are encoded once for all readers
        self, request: pb.StreamLogsRequest, context: Context
    ) -> AsyncIterator[bytes]:
        """Yield a heartbeat, then the log after the cursor as it grows, already encoded."""
        name, after = JobName.parse(request.name), _cursor(request.after_sequence)
        async with closed_after(self._log.read(name, after, context)) as frames:
            async for frame in frames:
                yield frame

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
