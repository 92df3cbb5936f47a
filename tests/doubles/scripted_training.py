"""A training service with one job whose history is given, over connections that break where the script says."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from headrace.training.v1 import training_event_pb2 as events, training_job_pb2 as jobs, training_service_pb2 as pb
from headrace.training.v1.training_service_pb2_grpc import TrainingServiceServicer
from tests.doubles.refusal import Refusal

State = jobs.TrainingJob.State
BROKEN = Refusal(grpc.StatusCode.UNAVAILABLE, "Socket closed")


def history(
    num_steps: int = 8, ending: "jobs.TrainingJob.State.ValueType" = State.STATE_SUCCEEDED
) -> list[events.TrainingEvent]:
    """A whole life: queued, running, steps with an evaluation after each fourth, the end."""
    entries = [_moved(State.STATE_UNSPECIFIED, State.STATE_QUEUED), _moved(State.STATE_QUEUED, State.STATE_RUNNING)]
    for step in range(1, num_steps + 1):
        done = step / num_steps
        entries.append(
            events.TrainingEvent(
                step_completed=jobs.StepCompleted(
                    step=step, epoch=1 + (step - 1) // 4, fraction=done, loss=2.0 / step, samples_per_second=1000.0
                )
            )
        )
        if step % 4 == 0:
            evaluation = events.EvaluationCompleted(
                step=step, epoch=step // 4, metrics={"accuracy": done, "loss": 1.0 / step}, is_best=True, num_rows=100
            )
            entries.append(events.TrainingEvent(evaluation_completed=evaluation))
    if ending == State.STATE_SUCCEEDED:
        registered = events.ModelRegistered(model_version="models/digits/versions/1")
        entries.append(events.TrainingEvent(model_registered=registered))
    entries.append(_moved(State.STATE_RUNNING, ending))
    for sequence, entry in enumerate(entries, 1):
        entry.sequence = sequence
        entry.time.FromSeconds(1_700_000_000 + sequence)
    entries[-1].state_changed.job.CopyFrom(finished_job(ending, len(entries)))
    return entries


def finished_job(ending: "jobs.TrainingJob.State.ValueType", latest_sequence: int) -> jobs.TrainingJob:
    job = jobs.TrainingJob(name="trainingJobs/j1", state=ending, latest_sequence=latest_sequence)
    if ending == State.STATE_SUCCEEDED:
        job.model_version = "models/digits/versions/1"
    if ending == State.STATE_FAILED:
        evidence = {"exit_code": "", "signal": "SIGKILL", "restarts": "3"}
        failure = Refusal(grpc.StatusCode.ABORTED, "its worker died 4 times", "WORKER_LOST", evidence)
        job.failure.CopyFrom(failure.status())
    if ending == State.STATE_CANCELLED:
        job.state_message = "no longer needed"
    return job


class ScriptedTraining(TrainingServiceServicer):
    """One job, `trainingJobs/j1`; its readers see `history` and are cut off as `cuts` says."""

    def __init__(self, entries: Sequence[events.TrainingEvent] | None = None) -> None:
        self.entries = list(history() if entries is None else entries)
        self.cuts: list[int] = []
        """For each connection in turn, the number of events after which it breaks; later ones hold."""
        self.cut_with = BROKEN
        self.refusals: list[Refusal] = []
        """What the next calls are refused with, one each."""
        self.lose_answers = 0
        """So many calls of StartTraining are carried out, but their answers get lost."""
        self.cursors: list[int] = []
        """The `after_sequence` of each connection."""
        self.log = [events.LogLine(sequence=n, text=f"line {n}") for n in range(1, 6)]
        self.started: dict[str, jobs.TrainingJob] = {}
        """By request id."""
        self.requests: list[pb.StartTrainingRequest] = []
        self.cancels: list[pb.CancelTrainingJobRequest] = []
        self.pauses: list[pb.PauseTrainingJobRequest] = []
        self.deleted: list[str] = []
        self.has_ended = True
        """False: the history is not over; readers wait at its end."""
        self.heartbeat_seconds = 0.05
        self.name = "trainingJobs/j1"
        """The name of the one job."""
        self.jobs_listed = [f"trainingJobs/p{number}" for number in range(6)]
        """What ListTrainingJobs finds, two a page whatever the size asked for."""
        self.readers = 0

    def job(self) -> jobs.TrainingJob:
        """The job as it is now."""
        last = self.entries[-1]
        if self.has_ended and last.state_changed.HasField("job"):
            last.state_changed.job.name = self.name
            return last.state_changed.job
        return jobs.TrainingJob(name=self.name, state=State.STATE_RUNNING, latest_sequence=len(self.entries))

    async def StartTraining(self, request: pb.StartTrainingRequest, context: Any) -> pb.StartTrainingResponse:
        await self._maybe_refuse(context)
        self.requests.append(request)
        name = f"trainingJobs/j{len(self.started) + 1}"
        job = jobs.TrainingJob(name=name, spec=request.spec, state=State.STATE_QUEUED, labels=request.labels)
        job = self.started.setdefault(request.request_id, job)
        if self.lose_answers:
            self.lose_answers -= 1
            await BROKEN.send(context)
        return pb.StartTrainingResponse(job=job)

    async def StreamProgress(
        self, request: pb.StreamProgressRequest, context: Any
    ) -> AsyncIterator[pb.StreamProgressResponse]:
        await self._maybe_refuse(context)
        self.cursors.append(request.after_sequence)
        left = self.cuts.pop(0) if self.cuts else None
        self.readers += 1
        try:
            yield pb.StreamProgressResponse(snapshot=self.job())
            for entry in self.entries[request.after_sequence :]:
                if left == 0:
                    await self.cut_with.send(context)
                left = None if left is None else left - 1
                yield pb.StreamProgressResponse(event=entry)
            if left == 0:
                await self.cut_with.send(context)
            sent = max(len(self.entries), request.after_sequence)
            while not self.has_ended:
                await asyncio.sleep(self.heartbeat_seconds)
                yield pb.StreamProgressResponse(heartbeat=pb.Heartbeat(latest_sequence=len(self.entries)))
            for entry in self.entries[sent:]:
                yield pb.StreamProgressResponse(event=entry)
        finally:
            self.readers -= 1

    async def StreamLogs(self, request: pb.StreamLogsRequest, context: Any) -> AsyncIterator[pb.StreamLogsResponse]:
        await self._maybe_refuse(context)
        self.cursors.append(request.after_sequence)
        yield pb.StreamLogsResponse(heartbeat=pb.Heartbeat(latest_sequence=len(self.log)))
        left = self.cuts.pop(0) if self.cuts else None
        for line in self.log[request.after_sequence :]:
            if left == 0:
                await self.cut_with.send(context)
            left = None if left is None else left - 1
            yield pb.StreamLogsResponse(line=line)
        while not self.has_ended:
            yield pb.StreamLogsResponse(heartbeat=pb.Heartbeat(latest_sequence=len(self.log)))
            await asyncio.sleep(0.05)

    async def GetTrainingJob(self, request: pb.GetTrainingJobRequest, context: Any) -> pb.GetTrainingJobResponse:
        await self._maybe_refuse(context)
        if request.name != self.name:
            refusal = Refusal(
                grpc.StatusCode.NOT_FOUND,
                f"{request.name!r} does not exist",
                "TRAINING_JOB_NOT_FOUND",
                {"name": request.name},
                request_id="r-17",
            )
            await refusal.send(context)
        return pb.GetTrainingJobResponse(job=self.job())

    async def ListTrainingJobs(self, request: pb.ListTrainingJobsRequest, context: Any) -> pb.ListTrainingJobsResponse:
        await self._maybe_refuse(context)
        start = int(request.page_token or 0)
        listed = [jobs.TrainingJob(name=name, state=State.STATE_SUCCEEDED) for name in self.jobs_listed]
        token = str(start + 2) if start + 2 < len(listed) else ""
        return pb.ListTrainingJobsResponse(jobs=listed[start : start + 2], next_page_token=token)

    async def CancelTrainingJob(
        self, request: pb.CancelTrainingJobRequest, context: Any
    ) -> pb.CancelTrainingJobResponse:
        await self._maybe_refuse(context)
        self.cancels.append(request)
        if self.has_ended:
            message = f"cannot cancel {request.name}: it is SUCCEEDED"
            await Refusal(grpc.StatusCode.FAILED_PRECONDITION, message, "ILLEGAL_TRANSITION").send(context)
        return pb.CancelTrainingJobResponse(job=jobs.TrainingJob(name=request.name, state=State.STATE_CANCELLING))

    async def PauseTrainingJob(self, request: pb.PauseTrainingJobRequest, context: Any) -> pb.PauseTrainingJobResponse:
        await self._maybe_refuse(context)
        self.pauses.append(request)
        job = jobs.TrainingJob(name=request.name, state=State.STATE_PAUSING, latest_sequence=len(self.entries))
        return pb.PauseTrainingJobResponse(job=job)

    async def ResumeTrainingJob(
        self, request: pb.ResumeTrainingJobRequest, context: Any
    ) -> pb.ResumeTrainingJobResponse:
        if not self.pauses:
            message = f"cannot resume {request.name}: it is RUNNING"
            await Refusal(grpc.StatusCode.FAILED_PRECONDITION, message, "ILLEGAL_TRANSITION").send(context)
        return pb.ResumeTrainingJobResponse(job=jobs.TrainingJob(name=request.name, state=State.STATE_QUEUED))

    async def DeleteTrainingJob(
        self, request: pb.DeleteTrainingJobRequest, context: Any
    ) -> pb.DeleteTrainingJobResponse:
        await self._maybe_refuse(context)
        self.deleted.append(request.name)
        return pb.DeleteTrainingJobResponse()

    async def CompareTrainingJobs(
        self, request: pb.CompareTrainingJobsRequest, context: Any
    ) -> pb.CompareTrainingJobsResponse:
        await self._maybe_refuse(context)
        compared = [
            pb.ComparedJob(
                name=name,
                state=State.STATE_SUCCEEDED,
                latest_step=jobs.StepCompleted(step=100 * number, loss=1 / number, samples_per_second=1000.0),
                latest_evaluation=events.EvaluationCompleted(step=100 * number, metrics={"accuracy": 0.9}),
                best_evaluation=events.EvaluationCompleted(step=50, metrics={"accuracy": 0.95}),
                num_workers=number,
            )
            for number, name in enumerate(request.names, 1)
        ]
        seed = pb.Difference(path="recipe.seed", values=[str(number) for number, _ in enumerate(request.names, 1)])
        torch = pb.Difference(path="environment.torch", values=["2.13.0" for _ in request.names[1:]] + [""])
        return pb.CompareTrainingJobsResponse(jobs=compared, spec_differences=[seed], lineage_differences=[torch])

    async def ListTrainers(self, request: pb.ListTrainersRequest, context: Any) -> pb.ListTrainersResponse:
        trainer = pb.Trainer(name="tabular", title="A network over columns", dataset_formats=["CSV", "PARQUET"])
        trainer.parameters_schema.update({"properties": {"target": {"type": "string"}}, "required": ["target"]})
        return pb.ListTrainersResponse(trainers=[trainer])

    async def _maybe_refuse(self, context: Any) -> None:
        if self.refusals:
            await self.refusals.pop(0).send(context)


def _moved(before: "jobs.TrainingJob.State.ValueType", after: "State.ValueType") -> events.TrainingEvent:
    change = events.StateChanged(to=after, reason="SCRIPTED")
    setattr(change, "from", before)
    return events.TrainingEvent(state_changed=change)
