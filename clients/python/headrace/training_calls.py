"""Trainings: start one, find one again, list them, ask what can be trained."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Unpack

from headrace.names import job_name
from headrace.pages import Page, collect
from headrace.run import TrainingRun
from headrace.spec import SpecKeywords, training_spec
from headrace.training.v1.training_job_pb2 import TrainingJob
from headrace.training.v1.training_service_pb2 import (
    CompareTrainingJobsRequest,
    CompareTrainingJobsResponse,
    GetTrainingJobRequest,
    ListTrainersRequest,
    ListTrainingJobsRequest,
    StartTrainingRequest,
    Trainer as TrainerDescription,
)
from headrace.training.v1.training_spec_pb2 import TrainingSpec
from headrace.wire import Wire


class TrainingCalls:
    """The part of a client that trains."""

    _wire: Wire

    async def start_training(
        self,
        spec: TrainingSpec | None = None,
        *,
        job_id: str = "",
        labels: Mapping[str, str] | None = None,
        request_id: str = "",
        validate_only: bool = False,
        timeout: float | None = None,
        **keywords: Unpack[SpecKeywords],
    ) -> TrainingRun:
        """Start a training and return at once; the job is durable, and goes on whether or not anybody watches.

        Give a TrainingSpec, or keywords as for `training_spec`: `dataset`, `model`, `trainer`, `epochs`…  The call is
        repeated safely when the server is away or its queue is full and says when to come back, within `timeout`
        seconds: it carries a request id, made up unless given.  Raises InvalidSpec with every violation at once.

        With `validate_only` nothing is started: the run's `job` shows what would be.
        """
        if spec is not None and keywords:
            raise TypeError(f"give a spec or keywords, not both: {', '.join(keywords)}")
        request = StartTrainingRequest(
            request_id=request_id or str(uuid.uuid4()),
            job_id=job_id,
            spec=spec if spec is not None else training_spec(**keywords),
            labels=labels,
            validate_only=validate_only,
        )
        answer = await self._wire.call_safely(self._wire.training.StartTraining, request, timeout)
        return TrainingRun(self._wire, answer.job)

    async def training_run(self, job: str) -> TrainingRun:
        """The run of a job that somebody started: by its id or full name.  Raises JobNotFound."""
        return TrainingRun(self._wire, await self.get_training_job(job))

    async def get_training_job(self, job: str) -> TrainingJob:
        """One job as it is now.  Raises JobNotFound."""
        request = GetTrainingJobRequest(name=job_name(job))
        return (await self._wire.call_once(self._wire.training.GetTrainingJob, request)).job

    async def list_training_jobs(self, *, filter: str = "", limit: int | None = None) -> list[TrainingJob]:  # noqa: A002 - the contract's word
        """Jobs, newest first.  `filter` joins conditions by AND: `state = RUNNING AND model = models/digits`."""

        async def page(size: int, token: str) -> Page[TrainingJob]:
            request = ListTrainingJobsRequest(page_size=size, page_token=token, filter=filter)
            answer = await self._wire.call_once(self._wire.training.ListTrainingJobs, request)
            return Page(answer.jobs, answer.next_page_token)

        return await collect(page, limit)

    async def compare_training_jobs(self, jobs: Sequence[str]) -> CompareTrainingJobsResponse:
        """Two to twenty jobs side by side, by id or full name: how they differ, how good they are, what they took.

        Raises JobNotFound, InvalidSpec.
        """
        request = CompareTrainingJobsRequest(names=map(job_name, jobs))
        return await self._wire.call_once(self._wire.training.CompareTrainingJobs, request)

    async def list_trainers(self, *, limit: int | None = None) -> list[TrainerDescription]:
        """What can be trained, with the JSON Schema of each trainer's parameters."""

        async def page(size: int, token: str) -> Page[TrainerDescription]:
            request = ListTrainersRequest(page_size=size, page_token=token)
            answer = await self._wire.call_once(self._wire.training.ListTrainers, request)
            return Page(answer.trainers, answer.next_page_token)

        return await collect(page, limit)
